"""--mode=check_data: reads every image once and lists what cannot be used."""

from larq_adambnn import data
from larq_adambnn.data import catalog, check
from larq_adambnn.errors import UsageError
from larq_adambnn.runs.config import Config

__all__ = ["main"]


def main(config: Config) -> None:
    """Decodes every image of every split, and prints a line for each that cannot be used.

    Raises:
        UsageError: there was one.
    """
    class_names = data.describe(config.dataset, config.data_dir).class_names
    count = 0
    for split in ("train", *data.splits(config.dataset, config.data_dir)):
        source = catalog.open_source(config.dataset, config.data_dir, split, class_names)
        found, rotated = check.defects(source, split)
        problems = [*source.problems, *found]
        for problem in problems:
            print(problem)
        if rotated:
            print(
                f"note: {len(rotated):,} images of {split} carry a rotation in their EXIF data, "
                f"which is not applied (torchvision does not either), such as {rotated[0]}"
            )
        print(f"{split}: {len(source):,} examples read, {len(problems):,} problems", flush=True)
        count += len(problems)
    if count:
        raise UsageError(f"--mode=check_data found {count:,} problems, which are listed above")
