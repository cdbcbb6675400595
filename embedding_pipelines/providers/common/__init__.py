"""What several providers share: HTTP, replies, prompts, prices, tokenizers."""
