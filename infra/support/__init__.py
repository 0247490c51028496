"""The support bundle: what there is to know of one sandbox, fit to be shown to others."""
