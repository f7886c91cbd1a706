"""Networks: AtomBatch, t and a previous prediction in, a prediction of the clean fields out."""
