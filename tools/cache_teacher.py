"""Write the teacher's embeddings of all training images, for runs that then need no teacher.

    python tools/cache_teacher.py CONFIG distill.cache=data/train.teacher.parquet
    torchrun --nproc_per_node=8 launch/train.py CONFIG distill.cache=data/train.teacher.parquet

CONFIG names the data (data.train), the teacher (distill.model) and the file (distill.cache). The
file is Parquet, a row for each image (embedding, and mirrored where data.augment is flip), and
says which teacher and which pictures it is of: a run refuses it where they are others.
"""

from kappaface_dist import options
from kappaface_dist.commands import image_progress, new_parser, run, write_json
from kappaface_dist.config.file import load_config
from kappaface_dist.parallel import ranks as parallel
from kappaface_dist.training.teacher_cache import write_cache


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("config", help="a YAML file of configs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options.add_batch_size(parser)
    options.add_device(parser, None)
    options.add_json(parser)
    args = parser.parse_intermixed_args()
    if args.batch_size < 1:
        raise ValueError(f"--batch-size is {args.batch_size}, expected 1 or more")
    config = load_config(args.config, args.overrides)
    device = parallel.start(device_name=args.device)
    if parallel.world_size() > 1:
        raise ValueError("cache_teacher.py is one process: start it without torchrun")
    counts = write_cache(config, device, batch_size=args.batch_size, progress=image_progress())
    parallel.stop()
    if args.json != "-":
        print(
            f"{config.distill.cache}: the embeddings of {counts['images']} images,"
            f" {counts['without']} of which have none (unreadable, or not finite)"
        )
    write_json(args.json, {**counts, "file": config.distill.cache})


if __name__ == "__main__":
    run(main)
