"""haqsearch evaluate: the accuracy of a policy's integer program on the report split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from haqsearch.cli.options import AsJson, DataRoot, Overrides, PolicyText, RecipePath, assemble, results_folder

if TYPE_CHECKING:
    from haqsearch.cli.assemble import Assembly
    from haqsearch.evaluate import Prepared
    from haqsearch.spec import Policy


def command(
    recipe: RecipePath,
    policy: PolicyText = "uniform:w8a8",
    set_: Overrides = None,
    data_root: DataRoot = None,
    json: AsJson = False,
) -> None:
    """Score a policy, without training, on the report split: the integer program, not a simulation."""
    import time

    from haqsearch.cli.policies import check_policy_widths, load_policy

    assembly = assemble(recipe, set_, data_root, results_folder(recipe))
    chosen = load_policy(policy, assembly, lambda note: typer.echo(note, err=True))
    check_policy_widths(chosen, assembly)
    start = time.perf_counter()
    scores = assembly.evaluator.score(_prepared(assembly, chosen).lower(chosen), "report")
    seconds = time.perf_counter() - start
    reference = assembly.evaluator.float_scores("report")
    costs = assembly.meter.costs(chosen)
    if json:
        from json import dumps

        content = {
            "policy_digest": chosen.digest,
            "accuracy": scores.accuracy,
            "loss": scores.loss,
            "kl": scores.kl,
            "float_accuracy": reference.accuracy,
            "samples": scores.samples,
            "metrics": costs,
            "seconds": seconds,
            "float_layers": {layer.name: layer.reason for layer in assembly.prepared.spec if not layer.quantizable},
        }
        print(dumps(content, indent=2))
        return
    print(
        f"accuracy {scores.accuracy:.2%} (float {reference.accuracy:.2%}), loss {scores.loss:.4f}, KL {scores.kl:.4f}"
    )
    for layer in assembly.prepared.spec:
        if not layer.quantizable:
            print(f"{layer.name}: stays in float32 ({layer.reason})")
    print(f"{scores.samples} report samples in {seconds:.1f} s; the policy as given, without fine-tuning")


def _prepared(assembly: Assembly, policy: Policy) -> Prepared:
    """The network with the weights the recipe's preset gives a chosen policy."""
    if "in_order" in assembly.recipe.ptq.pipeline:
        return assembly.prepared.in_order(policy, assembly.splits.calibrate[0])
    return assembly.prepared
