"""Temporary."""
def load_module(spec, source, dtype):
    import torch
    from transformers import AutoModelForCausalLM
    kw = {"attn_implementation": spec.attn_implementation} if spec.attn_implementation else {}
    return AutoModelForCausalLM.from_pretrained(source.folder, dtype=getattr(torch, dtype), local_files_only=True, **kw)
def load_tokenizer(spec, source):
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(source.folder, local_files_only=True)
