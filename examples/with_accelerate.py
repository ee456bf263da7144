"""FGE in a loop with accelerate: in one process, or under ``accelerate launch`` in several."""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fge
from fge.data import load_dataset
from fge.metrics import summary

EPOCHS, START, CYCLE = 8, 3, 2  # snapshots after 4, 6 and 8 epochs

accelerator = Accelerator(gradient_accumulation_steps=2)
torch.manual_seed(0)
data = load_dataset("fashion-mnist-mini", train_size=2000, val_fraction=0)
train, test = (TensorDataset(s.images / 255, s.labels) for s in (data.train, data.test))
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
loader = DataLoader(train, batch_size=32, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
steps_per_epoch = -(-len(loader) // accelerator.gradient_accumulation_steps)
cycle = None
for epoch in range(EPOCHS):
    if epoch == START:
        cycle = fge.FGE(  # after prepare; the first process writes
            model,
            optimizer,
            cycle_steps=CYCLE * steps_per_epoch,
            max_lr=0.1,
            min_lr=0.005,
            out="run/accelerate",
            overwrite=True,
        )
    for x, y in loader:
        with accelerator.accumulate(model):
            accelerator.backward(nn.functional.cross_entropy(model(x), y))
            optimizer.step()
            optimizer.zero_grad()
        stepped = accelerator.sync_gradients and not accelerator.optimizer_step_was_skipped
        if cycle is not None and stepped:
            cycle.step()

if accelerator.is_main_process:
    members = cycle.ensemble().predict_members(DataLoader(test, batch_size=500))
    targets = data.test.labels.numpy()
    for name, probs in {"last network": members[-1], "ensemble": members.mean(dim=0)}.items():
        figures = summary(probs.numpy(), targets)
        print(f"{name}: error {figures['error']:.2f} %, NLL {figures['nll']:.3f}")
