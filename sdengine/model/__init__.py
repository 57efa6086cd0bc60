"""From a Hugging Face directory to a validated config, named weights, RoPE tables, tokenizer and
chat template.
"""
