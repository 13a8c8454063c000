"""One module for each command: it reads arguments, asks the cluster and prints. It must render nothing by itself."""
