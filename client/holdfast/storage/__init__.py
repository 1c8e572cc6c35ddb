"""Where checkpoints and shards of data lie: one protocol over directories, S3 and what fsspec knows."""
