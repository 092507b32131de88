"""Margins compared: same data, seeds and budget, verified on people who were not trained on."""
