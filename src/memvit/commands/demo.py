"""`memvit demo`: a generated video, recognised, to see what comes out."""

from __future__ import annotations

from memvit.commands.terminal import say, stderr_console, stdout_console

MODEL = "memvit_tiny"


def demo(*, out: str = "demo-output", seed: int = 0, duration: float = 64.0) -> int:
    """Make a sample video, recognise it online with a small model, and draw the results.

    The model is not trained, so that nothing has to be downloaded: the demo shows what results look like, not how good
    they are.

    Args:
        out: folder for the video and its results.
        seed: chooses the video and the random weights.
        duration: length of the video, seconds.
    """
    import torch

    import memvit
    from memvit.commands.batch import Batch, Reading
    from memvit.commands.models import ChosenModel
    from memvit.models.hub import make_directory
    from memvit.online.results import UNTRAINED_NOTICE, read_summary
    from memvit.video.sample import make_sample_video

    root, console = make_directory(out), stderr_console()
    video = root / "sample.mp4"
    say(console, f"making {video} ({duration:g} s)")
    acts = make_sample_video(video, duration_s=duration, seed=seed)
    names = tuple(sorted({name for _, _, name in acts}))
    torch.manual_seed(seed)
    model = memvit.create_model(MODEL, num_classes=len(names), class_names=(names,)).eval()
    chosen = ChosenModel(model, MODEL, untrained=True)
    code = Batch(console).run(
        [str(video)], root, Reading(), chosen, lambda: memvit.OnlineRecognizer(model), overlay=True
    )
    if code:
        return code
    result = read_summary(root / video.stem)
    stdout = stdout_console()
    paths = [video, *(root / video.stem / file for file in result.files)]
    kinds = ("video", "predictions", "as a table", "timeline", "overlay", "summary")
    for kind, path in zip(kinds, paths, strict=True):
        stdout.print(f"{kind:<12} {path}", markup=False, soft_wrap=True)
    say(stdout, f"{MODEL} is untrained: {UNTRAINED_NOTICE}", "bold yellow")
    return 0
