"""FGE where several batches make a step, and where a gradient scaler skips steps."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import fge
from fge.data import load_dataset
from fge.metrics import summary

EPOCHS, START, CYCLE = 8, 3, 2  # snapshots after 4, 6 and 8 epochs
ACCUMULATE = 2  # batches per step
device = "cuda" if torch.cuda.is_available() else "cpu"
half = torch.float16 if device == "cuda" else torch.bfloat16

torch.manual_seed(0)
data = load_dataset("fashion-mnist-mini", train_size=2048, val_fraction=0)
train, test = (TensorDataset(s.images / 255, s.labels) for s in (data.train, data.test))
loader = DataLoader(train, batch_size=32, shuffle=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
scaler = torch.amp.GradScaler(device)
cycle = None
for epoch in range(EPOCHS):
    if epoch == START:
        cycle = fge.FGE(
            model,
            optimizer,
            cycle_steps=CYCLE * len(loader) // ACCUMULATE,  # optimizer steps, not batches
            max_lr=0.1,
            min_lr=0.005,
            out="run/accumulation",
            overwrite=True,
        )
    for number, (x, y) in enumerate(loader, start=1):
        with torch.autocast(device, dtype=half):
            loss = nn.functional.cross_entropy(model(x.to(device)), y.to(device))
        scaler.scale(loss / ACCUMULATE).backward()
        if number % ACCUMULATE:
            continue
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if cycle is not None and scaler.get_scale() >= before:  # a skipped step is no step
            cycle.step()

members = cycle.ensemble().predict_members(DataLoader(test, batch_size=500))
targets = data.test.labels.numpy()
for name, probs in {"last network": members[-1], "ensemble": members.mean(dim=0)}.items():
    figures = summary(probs.cpu().numpy(), targets)
    print(f"{name}: error {figures['error']:.2f} %, NLL {figures['nll']:.3f}")
