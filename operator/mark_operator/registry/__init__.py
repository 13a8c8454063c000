"""The model registry: versions, promotion, and the AutoPipeline's choice. Pure."""
