"""Run the restorer on Modal.

    modal deploy modal_app.py                                # page, REST, gradio_client; see below for a key
    modal run modal_app.py --input scans --output restored   # a folder on many GPU containers
    modal run --write-result t.csv modal_app.py::benchmark --gpus T4,A10G   # for `restorer cost --measured`

To require a key: `modal secret create restorer API_KEY=...`, and set RESTORER_SECRET=restorer when deploying.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import modal

GPU = os.environ.get("RESTORER_GPU", "L4")  # not "any", whose price and speed may change
MODEL, FACES = "RealESRGAN_x4plus", ("GFPGANv1.3", "yunet")
WEIGHTS, JOBS = "/weights", "/jobs"
# RESTORER_SECRET because the container imports this file too and must define the same secrets
IN_IMAGE = {"RESTORER_WEIGHTS": WEIGHTS, "RESTORER_SECRET": os.environ.get("RESTORER_SECRET", "")}
_HERE = Path(__file__).resolve().parent
_BUILT_IN = ("restore-lite-2-x4", "damage-detector", "damage-filler", "fading-estimator")
_FILES = ("app.py", "assets", "restorer", "weights/README.md")
_FILES += tuple(f"weights/{name}.safetensors" for name in _BUILT_IN)

app = modal.App("neural-image-restore")
weights = modal.Volume.from_name("neural-image-restore-weights", create_if_missing=True)
# REST jobs, uploads and results, so that accepted jobs survive the container
jobs = modal.Volume.from_name("neural-image-restore-jobs", create_if_missing=True)


def fetch_weights() -> None:
    """Download the models into the volume while the image is built."""
    from restorer.__main__ import main

    if main(["models", "--weights-dir", WEIGHTS, "--fetch", *FACES]):
        raise RuntimeError("downloading the models failed")
    weights.commit()


def _image() -> modal.Image:
    image = (
        modal.Image.debian_slim(python_version="3.12")
        .apt_install("libgl1", "libglib2.0-0", "gcc", "libc6-dev")  # Triton needs a C compiler
        # the tested versions; PyPI's PyTorch includes CUDA
        .add_local_file(_HERE / "requirements.txt", "/root/requirements.txt", copy=True)
        .add_local_file(_HERE / "requirements.lock", "/root/requirements.lock", copy=True)
        .run_commands(
            "pip install uv",
            "uv pip install --system -r /root/requirements.txt -c /root/requirements.lock",
        )
        .env(IN_IMAGE)
    )
    for name in _FILES:
        add = image.add_local_dir if (_HERE / name).is_dir() else image.add_local_file
        image = add(_HERE / name, f"/root/{name}", copy=True)
    return image.run_function(fetch_weights, volumes={WEIGHTS: weights})


image = _image() if modal.is_local() else modal.Image.debian_slim()
secrets = [modal.Secret.from_name(name)] if (name := os.environ.get("RESTORER_SECRET")) else []


@app.function(
    image=image,
    gpu=GPU,
    secrets=secrets,
    volumes={WEIGHTS: weights, JOBS: jobs},
    timeout=3600,  # of one request: a large photo and its wait in the queue
    scaledown_window=300,  # seconds that an idle container stays up and is billed
    max_containers=1,  # queue and jobs belong to one container; use the batch below for more
)
@modal.concurrent(max_inputs=100)  # requests queue in the server, which computes one photo at a time
@modal.asgi_app()
def web():  # noqa: ANN201  an ASGI application
    """Serve the page, REST and gradio_client."""
    from restorer.web import settings

    os.environ.setdefault("UPLOAD_FOLDER", f"{JOBS}/uploads")
    os.environ.setdefault("PROCESSED_FOLDER", f"{JOBS}/results")
    os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")  # only Modal's proxy can connect
    values = settings.read(Path("/root"))
    settings.prepare_gradio(values)
    from restorer.web import server

    return server.asgi(values)


@app.cls(image=image, gpu=GPU, volumes={WEIGHTS: weights}, timeout=3600, max_containers=10, retries=2)
class Restoring:
    """A container of a batch; its models stay loaded between photos."""

    @modal.enter()
    def load(self) -> None:
        import restorer

        self.restorer = restorer.load(weights=WEIGHTS)

    @modal.method()
    def restore(self, name: str, data: bytes, options: dict) -> tuple[str, bytes, str, str]:
        """Return the photo's name, the result's bytes and format ("" after an error), and the error."""
        import restorer

        try:
            result = self.restorer.restore(data, **options)
        except restorer.RestoreError as error:
            return name, b"", "", str(error)
        return name, result.data, result.format, ""


@app.local_entrypoint()
def main(input: str, output: str = "restored", outscale: float = 4.0, model: str = "auto") -> None:
    """Restore a local folder on GPU containers; existing results are skipped."""
    import restorer
    from restorer import atomic, output_paths
    from restorer.folders import LeftOut
    from restorer.images import file_types

    left_out: list[LeftOut] = []
    mark = restorer.Options(outscale=outscale).size_mark
    tasks = output_paths.plan([Path(input)], Path(output), mark=mark, left_out=left_out)
    for one in left_out:
        print(one)
    todo = [task for task in tasks if not task.existing()]
    by_name = {str(task.source): task for task in todo}
    options = {"outscale": outscale, "model": model}
    if tasks and not tasks[0].forms and (image_format := file_types.format_of(Path(output))):
        options["format"] = image_format

    def inputs() -> Iterator[tuple[str, bytes, dict]]:
        for name in by_name:
            try:
                yield name, Path(name).read_bytes(), options
            except OSError as error:
                unanswered.discard(name)
                print(f"{name}: failed, {error.strerror or error}")

    done, unanswered = 0, set(by_name)
    for answer in Restoring().restore.starmap(inputs(), order_outputs=False, return_exceptions=True):
        if isinstance(answer, BaseException):  # the container failed on every retry
            print(f"a container failed: {answer}")
            continue
        name, data, image_format, error = answer
        unanswered.discard(name)
        if error:
            print(f"{name}: failed, {error}")
        else:
            atomic.write_atomic(by_name[name].path(image_format), data)
            done += 1
    for name in sorted(unanswered):
        print(f"{name}: failed, its container did")
    failed = len(todo) - done + sum(one.failed for one in left_out)
    print(f"{done} restored, {len(tasks) - len(todo)} skipped, {failed} failed")
    if failed:
        raise SystemExit(1)


@app.function(image=image, gpu=GPU, volumes={WEIGHTS: weights}, timeout=3600)
def timed(models: list[str], sizes: list[tuple[int, int]], repeats: int) -> list[dict[str, object]]:
    """Return the rows that `restorer cost` measures on this container's GPU; log every time."""
    from restorer.cost import pricing, report

    measured = report.time_models(models, sizes, repeats=repeats, log=print, weights=WEIGHTS)
    rows = measured.rows(pricing.prices())
    print(measured.text(rows, pricing.prices()))
    return [row for row in rows if row["how"] == "measured"]


@app.function(image=image, volumes={JOBS: jobs}, timeout=7200)
def benchmark(gpus: str = "T4,A10G", models: str = MODEL, sizes: str = "720x540,1254x940") -> str:
    """Time the same photos on each GPU; return rows as CSV for `restorer cost --measured FILE`."""
    from restorer import tables

    parts = (size.partition("x") for size in sizes.split(","))
    sides = [(int(width), int(height)) for width, _, height in parts]
    calls = [timed.with_options(gpu=gpu).spawn(models.split(","), sides, 5) for gpu in gpus.split(",")]
    table = tables.to_csv([row for call in calls for row in call.get()]).decode()
    Path(JOBS, "cost-gpus.csv").write_text(table)
    print(f"modal volume get {jobs.name} cost-gpus.csv")
    return table
