"""The learned constructor of DefinitionEMB (arXiv 2408.01308)."""
