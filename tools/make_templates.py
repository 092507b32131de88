"""Write a small template benchmark of made-up identities, in the layout of IJB-B and IJB-C.

python tools/make_templates.py data/templates --identities 60
"""

from tqdm import tqdm

from kappaface_dist import options
from kappaface_dist.commands import new_parser, run, write_json
from kappaface_dist.made_up_faces.templates import write_template_set


def main() -> None:
    parser = new_parser(__doc__)
    parser.add_argument("out", metavar="FOLDER", help="for loose_crop/ and meta/")
    options.add_identities(parser, 60, "people in the set", older="--people")
    parser.add_argument("--name", default="ijbx", help="prefix of the lists (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other people")
    options.add_json(parser)
    args = parser.parse_args()
    report = write_template_set(
        args.out,
        name=args.name,
        num_identities=args.people,
        seed=args.seed,
        progress=lambda people: tqdm(people, desc="people", disable=None),
    )
    if args.json != "-":
        print(
            f"{args.out}: {report['images']} images in {report['templates']} templates of"
            f" {report['people']} people, {report['pairs']} pairs"
        )
    write_json(args.json, report)


if __name__ == "__main__":
    run(main)
