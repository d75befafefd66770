"""How each token came about, kept and shown: a trace in JSON lines, branches, and one HTML page."""
