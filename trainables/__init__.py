"""What runs on a worker: data, backbones, fine-tuning. Knows nothing of the orchestrator."""
