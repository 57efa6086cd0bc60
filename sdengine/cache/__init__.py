"""KV cache: which blocks belong to whom, and the tensors behind them."""
