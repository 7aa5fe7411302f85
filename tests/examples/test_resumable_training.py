"""A training that stops and goes on: what is kept, and what is drawn anew."""

from __future__ import annotations

import argparse


def test_a_training_that_goes_on_keeps_its_state_and_draws_other_noise_and_batches(script, tmp_path):
    import torch

    shared = script("resumable_training.py")
    drawn = []

    class Small(shared.ResumableTraining):
        """One weight, drawn towards random numbers."""

        def loss(self):
            drawn.append((int(self.rng.integers(2**40)), float(torch.randn(()))))
            return (self.network.weight.sum() - drawn[-1][1]) ** 2

        def write_model(self):
            pass

    def train(iterations):
        parser = argparse.ArgumentParser()
        sizes = {"iterations": 4, "minutes": 1, "batch": 1, "learning_rate": 1e-2, "decay": 0.9, "save_minutes": 1}
        shared.add_training_arguments(parser, **sizes)
        args = parser.parse_args(["--out", str(tmp_path), "--iterations", str(iterations)])
        torch.manual_seed(args.seed)
        network = torch.nn.Linear(1, 1, bias=False)
        optimizers = [torch.optim.AdamW(network.parameters())]
        training = Small(args, network=network, optimizers=optimizers, scheduler=None, warm_up=1)
        before = training.network.weight.item(), training.mean.weight.item()
        training.run()
        return before, (training.network.weight.item(), training.mean.weight.item()), training.iteration

    _, first_end, _ = train(2)
    second_start, second_end, iteration = train(4)
    assert (second_start, iteration, len(drawn)) == (first_end, 4, 4)
    assert second_end != first_end
    assert len({batch for batch, _ in drawn}) == len({noise for _, noise in drawn}) == 4
