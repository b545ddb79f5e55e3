"""Component: make a release live."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish_release(root: str, run: str, release: str, keep: int) -> str:
    """Move the live pointer to a release by compare-and-swap, unless a newer release is live.

    Args:
        root: The folder or gs:// prefix that holds the registry.
        run: The run's id.
        release: From deploy_release.
        keep: Model versions that stay retained, the live one included.

    Returns:
        The release that is live afterwards.
    """
    from components.envelope import start_logging
    from lockstep.registry import Registry
    from lockstep.storage import open_root
    from lockstep.version import ReleaseId

    start_logging()
    registry = Registry(open_root(root))
    serving = registry.publish(ReleaseId.parse(release), by=f"run {run}", why="train_and_deploy", keep=keep)
    return str(serving.live)
