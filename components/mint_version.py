"""Component: take the next model version."""

from kfp import dsl

from components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def mint_version(root: str, run: str) -> int:
    """Take the next model version from the registry, for good.

    Args:
        root: The folder or gs:// prefix that holds the registry.
        run: The run that will use the number.

    Returns:
        The model version.
    """
    from components.envelope import start_step
    from lockstep.registry import Registry
    from lockstep.storage import open_root

    start_step()
    return int(Registry(open_root(root)).mint_version(run, by="mint_version"))
