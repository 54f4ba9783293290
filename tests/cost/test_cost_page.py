"""docs/cost.md: every row on it, computed again from its inputs, the prices and the run in docs/cost.csv."""

import csv
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from restorer.cost import benchmark, pricing
from restorer.cost.pricing import Work
from restorer.inference.upscale import tiles_needed
from restorer.models import compat

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "cost.md").read_text()
PRICES = pricing.prices()
RUN = list(csv.DictReader((DOCS / "cost.csv").read_text().splitlines()))
# The planning table's inputs: seconds from the fastest to the slowest, dollars a second
SECONDS = {
    ("A10G", "90 kB"): (2, 2),
    ("A10G", "276 kB"): (7, 7),
    ("T4", "90 kB"): (3, 4),
    ("T4", "276 kB"): (10, 14),
}
THEN = {"A10G": 0.0003, "T4": 0.00018}
NOW = {name: PRICES[name].usd_per_second for name in THEN}


def between(low: float, high: float, show: Callable[[float], str]) -> str:
    first, last = show(low), show(high)
    return first if first == last else f"{first} to {last}"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def planned(prices: dict[str, float]) -> Iterator[str]:
    for (gpu, photo), (fast, slow) in SECONDS.items():
        price = prices[gpu]
        most, least = (pricing.images_per_dollar(end, price) for end in (fast, slow))
        yield row(
            gpu,
            photo,
            between(fast, slow, str),
            between(pricing.dollars(fast, price), pricing.dollars(slow, price), "{:.6f}".format),
            between(least, most, "{:,.0f}".format),
        )


def budgets(prices: dict[str, float]) -> Iterator[str]:
    for name, large in (("worst case", 1), ("typical mix", 0.5), ("small images", 0)):
        each = [
            prices[gpu] * ((1 - large) * SECONDS[gpu, "90 kB"][end] + large * SECONDS[gpu, "276 kB"][end])
            for gpu in prices
            for end in (0, 1)
        ]
        yield row(
            name,
            f"{large:.0%}",
            between(1 / max(each), 1 / min(each), "{:,.0f}".format),
            between(1e6 * min(each), 1e6 * max(each), "{:,.0f}".format),
        )


def listed() -> Iterator[str]:
    for price in PRICES.values():
        peaks = (f"{peak:g}" if peak else "" for peak in (price.fp16_tflops, price.gb_per_second))
        a_second = f"{price.usd_per_second:.7f}".rstrip("0")
        yield row(price.name, a_second, f"{3600 * price.usd_per_second:.3f}", *peaks)


def measured() -> Iterator[str]:
    for one in RUN:
        if one["device"] in ("CPU", "T4", "A10G"):
            yield row(
                one["model"].removeprefix("custom/"),
                f"{one['width']} x {one['height']}",
                one["device"],
                f"{float(one['seconds']):.3f}",
                one["how"],
                f"{float(one['usd_per_image']):.7f}",
                f"{float(one['images_per_usd']):,.0f}",
            )


def told_work() -> Work:
    flops, traffic = re.findall(r"is ([\d.]+) million operations and ([\d.]+) bytes of traffic", PAGE)[0]
    return Work(float(flops) * 1e6, float(traffic))


def differing() -> Iterator[str]:
    engine = SimpleNamespace(scale=4, align=1, pad=24)
    for width, height, photo in ((720, 540, "90 kB"), (1254, 940, "276 kB")):
        here = next(one for one in RUN if one["width"] == str(width) and "general" in one["model"])
        _, seen = tiles_needed(width, height, engine, outscale=4, tile=256)
        for gpu in THEN:
            seconds = pricing.estimate_seconds(
                told_work() * seen, PRICES[gpu], elsewhere=float(here["elsewhere"])
            )
            fast, slow = SECONDS[gpu, photo]
            yield row(
                gpu,
                f"{width} x {height}",
                f"{seconds:.2f}",
                between(fast, slow, str),
                between(fast / seconds, slow / seconds, "{:.1f}".format),
                f"{pricing.images_per_dollar(seconds, NOW[gpu]):,.0f}",
            )


def test_every_row_of_the_page_follows_from_its_inputs():
    then, now = [*planned(THEN), *budgets(THEN)], [*planned(NOW), *budgets(NOW)]
    lines = PAGE.splitlines()
    heads = {lines[index - 1] for index, line in enumerate(lines) if line.startswith("|---")}
    shown = [line for line in lines if line.startswith("| ") and line not in heads]
    assert shown == [*listed(), *then, *now, *measured(), *differing()]


def test_the_runs_own_figures_follow_from_what_was_measured():
    for one in RUN:
        seconds, price = float(one["seconds"]), PRICES[one["device"]]
        if one["how"] == "estimated":
            work = Work(float(one["teraflop"]) * 1e12, float(one["gigabytes"]) * 1e9)
            assert seconds == pytest.approx(
                pricing.estimate_seconds(work, price, elsewhere=float(one["elsewhere"]))
            )
        paid = float(one["usd_per_second"])
        assert paid == pytest.approx(price.usd_per_second * (2 if one["device"] == "CPU" else 1))
        assert float(one["usd_per_image"]) == pytest.approx(seconds * paid)
        assert float(one["images_per_usd"]) == pytest.approx(1 / (seconds * paid))
        data = benchmark.sample(int(one["width"]), int(one["height"]), face=False)
        assert round(len(data) / 1000) == pytest.approx(int(one["kB"]), abs=3)


def test_the_large_networks_work_is_what_is_counted():
    import torch

    network = compat.load("basicsr.archs.rrdbnet_arch", "RRDBNet")(3, 3, num_block=23).eval()
    image = torch.zeros(1, 3, 128, 128)
    with torch.inference_mode(), benchmark.count_work() as work:
        network(image)
    assert work().flops / 128**2 == pytest.approx(told_work().flops, abs=1)
    assert work().bytes / 128**2 == pytest.approx(told_work().bytes, rel=0.01)


def test_the_texts_own_figures():
    assert f"{pricing._OF_PEAK * 100:.0f} % and {pricing._OF_BANDWIDTH * 100:.0f} % are taken" in PAGE
    cold = [float(one["cold"]) for one in RUN if one["how"] == "measured" and one["width"] == "720"]
    assert f"Cold starts: {cold[0]:.1f} s and {cold[1]:.1f} s." in PAGE
    assert [one["kB"] for one in RUN if one["how"] == "measured"] == ["92", "280"] * 2
    for name, peak in (("A10G", 70), ("T4", 65)):
        assert PRICES[name].fp16_tflops == peak
    assert 1.3 < NOW["A10G"] / NOW["T4"] * 65 / 70 < 1.8, "the T4 is cheaper by half"


# docs/scale.md


def test_the_scale_page_follows_from_the_cost_page():
    page = (DOCS / "scale.md").read_text()
    here = next(one for one in RUN if one["width"] == "720" and "general" in one["model"])
    elsewhere = float(here["elsewhere"])
    engine = SimpleNamespace(scale=4, align=1, pad=24)
    work = told_work() * tiles_needed(720, 540, engine, outscale=4, tile=256)[1]
    expected = []
    for price in PRICES.values():
        if price.fp16_tflops:
            seconds = pricing.estimate_seconds(work, price, elsewhere=elsewhere)
            expected.append(
                row(
                    price.name,
                    f"{seconds:.3f}",
                    f"{3600 / seconds:,.0f}",
                    f"{1e6 * seconds / 3600 / 16:.1f}",
                    f"{1e6 * pricing.dollars(seconds, price.usd_per_second):,.0f}",
                )
            )
    t4 = pricing.estimate_seconds(work, PRICES["T4"], elsewhere=elsewhere)
    cores = f"{elsewhere:.3f} core seconds | {t4 / elsewhere:.0f}"
    expected += [
        f"| what | per photo of 720 x 540 | room for, with t = {t4:.2f} s on a T4 |",
        f"| processor: decode and encode | {cores} GPUs for each core |",
        f"| storage and network: photo and result | 1.3 MB | {t4 * 125 / 1.3:.0f} GPUs for each Gbit/s |",
        f"| driver: noting a record | 0.2 ms | {t4 / 0.0002:.0f} GPUs |",
    ]
    lines = page.splitlines()
    assert [line for line in expected if line not in lines] == []
