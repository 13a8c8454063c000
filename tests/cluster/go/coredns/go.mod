module mark.dev/tests/cluster/coredns

go 1.26.0
