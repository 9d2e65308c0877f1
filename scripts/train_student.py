"""Fine-tune a ReLU ``swin_micro`` from the GELU one, taught by the GELU one.

All activations are swapped at once and one run of distillation follows. The paper's iterative
distillation is left out: its schedule is not published, and this plain one is what it is to be
compared with.
"""

from __future__ import annotations

from intswin.models.activation import replace_activation
from intswin.models.distill_maps import Distillation, SwinStages
from intswin.models.errors import run_script
from intswin.models.swin import MICRO_PREPROCESS, create_model
from intswin.models.training import seed_everything
from intswin.models.training_run import save_with_card, train, training_parser


def main() -> None:
    """Parse the flags, fine-tune, write checkpoint and card."""
    parser = training_parser(__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=10, help="the teacher's classes")
    parser.set_defaults(minutes=6.0, learning_rate=5e-4)
    arguments = parser.parse_args()
    seed_everything(arguments.seed)
    options = {"num_classes": arguments.classes, "checkpoint": arguments.teacher}
    distillation = Distillation(
        replace_activation(create_model(**options), "relu"),
        SwinStages(create_model(**options)),
        range(arguments.classes),
        label_weight=arguments.label_weight,
        map_weight=arguments.map_weight,
        temperature=arguments.temperature,
    )
    result = train(arguments, distillation, MICRO_PREPROCESS)
    if result is not None:
        save_with_card(result, arguments, MICRO_PREPROCESS)


if __name__ == "__main__":
    run_script(main)
