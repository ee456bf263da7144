"""FGE in a training by the Trainer of transformers: the rows of a picture as tokens."""

import torch
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from fge.data import load_dataset
from fge.integrations.transformers import FGECallback
from fge.metrics import summary

EPOCHS, START, CYCLE = 8, 3, 2  # snapshots after 4, 6 and 8 epochs


def sequences(split):
    """Return the 28 rows of each picture, as the embeddings of 28 tokens."""
    rows = split.images.squeeze(1) / 255
    pairs = zip(rows, split.labels, strict=True)
    return [{"inputs_embeds": row, "labels": label} for row, label in pairs]


torch.manual_seed(0)
data = load_dataset("fashion-mnist-mini", train_size=2000, val_fraction=0)
train, test = sequences(data.train), sequences(data.test)
config = BertConfig(
    hidden_size=28,
    intermediate_size=56,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_labels=10,
    initializer_range=0.1,
)
arguments = TrainingArguments(
    "run/transformers",
    num_train_epochs=EPOCHS,
    per_device_train_batch_size=50,
    learning_rate=1e-2,
    lr_scheduler_type="constant",  # until the cycles begin
    report_to="none",
    disable_tqdm=True,
)
callback = FGECallback(
    start_epoch=START,
    cycle_steps=CYCLE * len(train) // 50,
    max_lr=1e-2,
    min_lr=5e-4,
    out="run/transformers/snapshots",
    overwrite=True,
)
model = BertForSequenceClassification(config)
Trainer(model, arguments, train_dataset=train, callbacks=[callback]).train()

members = callback.ensemble().predict_members(DataLoader(test, batch_size=500))  # (S, N, C)
targets = data.test.labels.numpy()
for name, probs in {"last network": members[-1], "ensemble": members.mean(dim=0)}.items():
    figures = summary(probs.cpu().numpy(), targets)
    print(f"{name}: error {figures['error']:.2f} %, NLL {figures['nll']:.3f}")
