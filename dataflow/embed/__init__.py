"""Batch embedding: every candidate, or every query entity, through its tower once; see docs/embedding.md.

    entities -> rows.py -> batches.py -> shards.py -> the artifact of lockstep.embeddings
                read       encode, embed, check    write; what a job that died has finished is kept

Reading, encoding, computing and writing overlap. `beam.py` puts the same code into a Beam pipeline.
"""

from dataflow.embed.job import embed_shards as embed_shards
from dataflow.embed.job import run as run
