"""Component: make a release live."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish_release(root: str, run: str, release: str, kv: dict) -> str:
    """Move the live pointer to a release by compare-and-swap, unless a newer release is live.

    Args:
        root: The folder or gs:// prefix that holds the registry.
        run: The run's id.
        release: From deploy_release.
        kv: Section [kv] of the configuration; keep says how many model versions stay retained.

    Returns:
        The release that is live afterwards.
    """
    from components.envelope import mounted, start_step
    from lockstep.config import KVSection, parse_section
    from lockstep.version import ReleaseId
    from serving import deploy

    start_step()
    serving = deploy.publish(
        root=str(mounted(root)),
        release_id=ReleaseId.parse(release),
        by=f"run {run}",
        why="train_and_deploy",
        section=parse_section(KVSection, kv),
    )
    return str(serving.live)
