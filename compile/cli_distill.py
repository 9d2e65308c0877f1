"""The command `intswin distill`: its options alone; compile/distill.py does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from intswin.compile import cli_options as option

METHOD, LOSS, TRAINING = "Method", "Loss", "Training"

Data = Annotated[
    list[Path] | None,
    typer.Option(
        "--data", help="Images to train on: a pack or a folder, with or without labels. Repeatable."
    ),
]


def distill(
    *,
    data: Data = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Checkpoint; card and state go beside it.")
    ] = Path("out/student.safetensors"),
    network: option.Network = "swin_micro",
    teacher: Annotated[
        Path | None, typer.Option(help="Checkpoint with GELU. Default: the embedded one.")
    ] = None,
    student: Annotated[
        Path | None, typer.Option(help="Checkpoint to start from. Default: the teacher's.")
    ] = None,
    num_classes: option.NumClasses = None,
    validation: Annotated[
        Path | None, typer.Option(help="Labeled images to measure on, never trained on.")
    ] = None,
    limit: option.Limit = None,
    method: Annotated[
        str, typer.Option(help="iterative or reconstruct.", rich_help_panel=METHOD)
    ] = "iterative",
    schedule: Annotated[
        str, typer.Option(help="block, stage or all-at-once.", rich_help_panel=METHOD)
    ] = "block",
    order: Annotated[
        str, typer.Option(help="shallow-to-deep or deep-to-shallow.", rich_help_panel=METHOD)
    ] = "shallow-to-deep",
    drop_fc1_bias: option.DropFc1Bias = False,
    finish_share: Annotated[
        float,
        typer.Option(help="Part of the budget after the last replacement.", rich_help_panel=METHOD),
    ] = 0.5,
    plateau_steps: Annotated[
        int,
        typer.Option(
            help="Replace the next early after so many steps without progress; 0 for never.",
            rich_help_panel=METHOD,
        ),
    ] = 0,
    reconstruct_steps: Annotated[
        int, typer.Option(help="Steps of each block, 1 or more.", min=1, rich_help_panel=METHOD)
    ] = 1000,
    qat: Annotated[
        bool,
        typer.Option("--qat", help="Finish with the integers' rounding.", rich_help_panel=METHOD),
    ] = False,
    qat_steps: Annotated[
        int, typer.Option(help="Steps of that finish.", min=1, rich_help_panel=METHOD)
    ] = 300,
    logit_weight: Annotated[float, typer.Option(rich_help_panel=LOSS)] = 1.0,
    block_weight: Annotated[float, typer.Option(rich_help_panel=LOSS)] = 1.0,
    stage_weight: Annotated[float, typer.Option(rich_help_panel=LOSS)] = 1.0,
    label_weight: Annotated[float, typer.Option(rich_help_panel=LOSS)] = 0.5,
    temperature: Annotated[
        float, typer.Option(help="Of both softmaxes.", rich_help_panel=LOSS)
    ] = 2.0,
    feature_loss: Annotated[str, typer.Option(help="mse or cosine.", rich_help_panel=LOSS)] = "mse",
    steps: Annotated[
        int | None, typer.Option(help="Budget in steps.", rich_help_panel=TRAINING)
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Budget in minutes.", rich_help_panel=TRAINING)
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(help="Images of a step, over all processes.", rich_help_panel=TRAINING),
    ] = 128,
    accumulate: Annotated[
        int, typer.Option(help="Parts that a batch is cut into.", rich_help_panel=TRAINING)
    ] = 1,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Peak. Default: 2e-4, or 4e-4 to reconstruct.", rich_help_panel=TRAINING),
    ] = None,
    weight_decay: Annotated[float, typer.Option(rich_help_panel=TRAINING)] = 0.05,
    ema_decay: Annotated[float, typer.Option(rich_help_panel=TRAINING)] = 0.999,
    early_stop: Annotated[
        int,
        typer.Option(
            help="Stop after so many validations without a better one; 0 for never.",
            rich_help_panel=TRAINING,
        ),
    ] = 0,
    validate_every: Annotated[
        int, typer.Option(help="Steps.", min=1, rich_help_panel=TRAINING)
    ] = 200,
    save_every: Annotated[int, typer.Option(help="Steps.", min=1, rich_help_panel=TRAINING)] = 200,
    report_every: Annotated[int, typer.Option(help="Steps.", min=1, rich_help_panel=TRAINING)] = 20,
    seed: Annotated[int, typer.Option(rich_help_panel=TRAINING)] = 0,
    amp: Annotated[
        bool, typer.Option(help="bfloat16 where it is safe.", rich_help_panel=TRAINING)
    ] = True,
    device: Annotated[
        str | None, typer.Option(help="Default: a GPU if any.", rich_help_panel=TRAINING)
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(help="Folder for TensorBoard.", rich_help_panel=TRAINING)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on from the state file.", rich_help_panel=TRAINING),
    ] = False,
) -> None:
    """Turn a GELU network into a ReLU network that is as accurate, by distillation."""
    import torch  # noqa: PLC0415 - seconds that --help need not wait

    from intswin.compile import distill as work  # noqa: PLC0415
    from intswin.models.distill_loss import LossWeights  # noqa: PLC0415
    from intswin.models.distill_schedule import TrainOptions  # noqa: PLC0415
    from intswin.models.reconstruct import ReconstructOptions  # noqa: PLC0415

    if steps is None and minutes is None:
        steps = 2000
    options = work.DistillOptions(
        data=tuple(data or ()), output=output, network=network, teacher=teacher, student=student,
        num_classes=num_classes, validation=validation, limit=limit, method=method,
        schedule=schedule, order=order, drop_fc1_bias=drop_fc1_bias,
        qat_steps=qat_steps if qat else 0, resume=resume, tensorboard=tensorboard,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        weights=LossWeights(
            logit_weight, block_weight, stage_weight, label_weight, temperature, feature_loss
        ),
        reconstruct=ReconstructOptions(
            steps=reconstruct_steps, learning_rate=learning_rate or 4e-4, seed=seed
        ),
        train=TrainOptions(
            steps=steps, minutes=minutes, batch_size=batch_size, accumulate=accumulate,
            learning_rate=learning_rate or 2e-4, weight_decay=weight_decay, ema_decay=ema_decay,
            finish_share=finish_share, plateau_steps=plateau_steps, early_stop=early_stop,
            validate_every=validate_every, save_every=save_every, report_every=report_every,
            seed=seed, amp=amp,
        ),
    )  # fmt: skip
    work.distill(options, lambda line: print(line, flush=True))
