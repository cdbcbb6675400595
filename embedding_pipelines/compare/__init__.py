"""Which model finds most in a pipeline's own data, and what each would cost."""
