"""Forms of a model beside Transformers' own: GGUF and ONNX.

Each form can say, of a configuration and a tokenizer, why it cannot be written (`objection`: nothing dear has started
yet); write itself from a folder with weights, tensor by tensor where it can; and be checked as its users will load it.
What fails its check is a `NotTheModel`, and is never published. Nothing here knows of stages or of the workspace.
"""
