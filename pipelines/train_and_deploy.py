"""The pipeline from interactions to a live release of a new model version."""

from kfp import dsl

from components.build_index import build_index
from components.deploy_release import deploy_release
from components.embed_candidates import embed_candidates
from components.embed_queries import embed_queries
from components.evaluate_towers import evaluate_towers
from components.generate_examples import generate_examples
from components.load_kv import load_kv
from components.mint_version import mint_version
from components.publish_release import publish_release
from components.train_towers import train_towers
from components.validate_release import validate_release

FIRST_SNAPSHOT = 1


@dsl.pipeline(name="train-and-deploy")
def train_and_deploy(
    root: str,
    run: str,
    data: dict,
    schema: dict,
    model: dict,
    train: dict,
    evaluate: dict,
    embed: dict,
    index: dict,
    kv: dict,
    gate: dict,
) -> None:
    """Train a new model version and make it live.

    1. Take the next model version.
    2. Turn interactions into training examples, vocabularies and entities.
    3. Train both towers; the version is baked into each.
    4. Measure them over the full catalogue.
    5. Embed every candidate and every query entity.
    6. Build the index, tuned on the query embeddings.
    7. Load the query embeddings into the key-value store.
    8. Check the whole system: the gate.
    9. Bind the parts into a release and open it as serving will.
    10. Make it live. Until this step the previous release serves; after it too, as a fallback.
    """
    version = mint_version(root=root, run=run).set_caching_options(False)
    made = generate_examples(run=run, data=data, schema=schema).after(version)
    towers = train_towers(
        root=root,
        run=run,
        model_version=version.output,
        model=model,
        train=train,
        examples=made.outputs["examples"],
        preprocessing=made.outputs["preprocessing"],
    )
    measured = evaluate_towers(
        run=run,
        model_version=version.output,
        evaluate=evaluate,
        examples=made.outputs["examples"],
        entities=made.outputs["entities"],
        query_tower=towers.outputs["query_tower"],
        candidate_tower=towers.outputs["candidate_tower"],
    )
    candidates = embed_candidates(
        run=run,
        model_version=version.output,
        snapshot=FIRST_SNAPSHOT,
        embed=embed,
        candidate_tower=towers.outputs["candidate_tower"],
        entities=made.outputs["entities"],
    )
    queries = embed_queries(
        run=run,
        model_version=version.output,
        snapshot=FIRST_SNAPSHOT,
        embed=embed,
        query_tower=towers.outputs["query_tower"],
        entities=made.outputs["entities"],
    )
    indexed = build_index(
        run=run,
        model_version=version.output,
        index=index,
        candidate_embeddings=candidates.outputs["candidate_embeddings"],
        query_embeddings=queries.outputs["query_embeddings"],
    )
    loaded = load_kv(
        root=root,
        run=run,
        model_version=version.output,
        kv=kv,
        query_embeddings=queries.outputs["query_embeddings"],
    ).set_caching_options(False)
    parts = {
        "evaluation": measured.outputs["evaluation"],
        "entities": made.outputs["entities"],
        "query_tower": towers.outputs["query_tower"],
        "candidate_tower": towers.outputs["candidate_tower"],
        "query_embeddings": queries.outputs["query_embeddings"],
        "candidate_embeddings": candidates.outputs["candidate_embeddings"],
        "ann_index": indexed.outputs["ann_index"],
        "kv_load": loaded.outputs["kv_load"],
    }
    checked = validate_release(root=root, run=run, model_version=version.output, gate=gate, **parts)
    deployed = deploy_release(
        root=root,
        run=run,
        model_version=version.output,
        snapshot=FIRST_SNAPSHOT,
        examples=made.outputs["examples"],
        preprocessing=made.outputs["preprocessing"],
        verdict=checked.set_caching_options(False).outputs["verdict"],
        **parts,
    ).set_caching_options(False)
    publish_release(root=root, run=run, release=deployed.output, kv=kv).set_caching_options(False)
