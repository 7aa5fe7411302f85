"""The report of a plan in words: what the terminal and the HTML page both say."""

from __future__ import annotations

from collections import Counter

from dq_deploy.verify.plan.attestation import PlanAttestation
from dq_deploy.verify.plan.report import PlanReport


def summary_rows(report: PlanReport) -> list[tuple[str, str]]:
    """The summary in words, for the terminal and the HTML page."""
    told, manifest = report.attestation, report.manifest
    options = {} if manifest.options is None else manifest.options.to_json()
    asked = Counter(layer.requested for layer in told.layers)
    became = Counter(layer.executed for layer in told.layers)
    rows = [
        ("plan", f"{told.runtime} {manifest.runtime_version}, for {', '.join(told.compute_capabilities)}"),
        ("made from record", str(manifest.record_sha256) + (", as given" if report.record_checked else "")),
        ("options", ", ".join(f"{key} {value}" for key, value in sorted(options.items()))),
        ("layers requested", _counts(asked)),
        ("layers executed", _counts(became)),
        (
            "integer MACs",
            f"{told.integer_mac_share:.2%} of all, {told.integer_mac_share_of_quantizable:.2%} of quantizable"
            + (f"; {told.macs.unknown / max(1, told.macs.of_all):.2%} unknown" if told.macs.unknown else ""),
        ),
    ]
    if told.kernels:
        roles = ("quantize", "dequantize", "unpack", "move_codes", "float")
        rest = ", ".join(f"{told.kernels[role]} {role.replace('_', ' ')}" for role in roles if told.kernels[role])
        products = f"{told.kernels['products']}, {told.kernels['integer_products']} of them integer"
        rows += [("products", products), ("other kernels", rest), ("standing alone", unfused_text(told))]
    if report.im2col_bytes:
        rows.append(("int8 patches", f"{report.im2col_bytes:,} bytes a sample are written and read for im2col"))
    if report.comparison:
        rows.append(("outputs", report.comparison))
    rows.append(("read in", f"{report.seconds:.1f} s, without running it"))
    return rows


def _counts(counter: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counter.items())) or "none"


def unfused_text(told: PlanAttestation) -> str:
    """What stands alone, in a line."""
    roles = Counter(row.role for row in told.unfused)
    text = ", ".join(f"{count} {role}" for role, count in roles.most_common())
    return f"{text} kernels hold no operation of the model" if text else "nothing: each kernel has model operations"
