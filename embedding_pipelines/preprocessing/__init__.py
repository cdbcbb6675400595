"""Preprocessing: documents become cleaned text, and cleaned text becomes chunks that the model can
take."""
