"""Models of Hugging Face's transformers, from the Hub or from a folder."""
