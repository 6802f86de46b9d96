"""Records as a fold of the stream: replayed, compared, tried under other definitions, kept as snapshots, pruned."""
