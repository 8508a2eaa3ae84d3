"""OXA: offline exploration-aware fine-tuning of math-reasoning language models (arXiv 2603.16206)."""
