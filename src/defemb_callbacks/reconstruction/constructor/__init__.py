"""The learned constructor of DefinitionEMB (arXiv 2408.01308): its model, data, training and predictions.

Its loss is in `defemb_callbacks.reconstruction.definition_head`.
"""
