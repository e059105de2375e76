"""The learned constructor of DefinitionEMB (arXiv 2408.01308): its model, data, training and predictions."""
