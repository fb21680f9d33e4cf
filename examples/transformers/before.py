"""A model of characters, trained on Python's own documentation by Hugging Face's Trainer.

python before.py --epochs 4
"""

import argparse
from pydoc_data.topics import topics

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--width", type=int, default=32)
args = parser.parse_args()

text = "\n".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")[:80_000]
rows = torch.tensor(list(text), dtype=torch.long).view(-1, 64)
data = [{"input_ids": row, "labels": row} for row in rows]

set_seed(0)
config = GPT2Config(
    vocab_size=128, n_positions=64, n_embd=args.width, n_layer=2, n_head=2,
    bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM",
)  # fmt: skip
trainer = Trainer(
    model=GPT2LMHeadModel(config),
    args=TrainingArguments(
        "out",
        num_train_epochs=args.epochs,
        learning_rate=args.lr,
        per_device_train_batch_size=32,
        eval_strategy="epoch",
        logging_steps=10,
        save_strategy="epoch",
        disable_tqdm=True,
        use_cpu=True,
    ),
    train_dataset=data[:1000],
    eval_dataset=data[1000:],
)
trainer.train()
print(f"loss of what it has not seen: {trainer.evaluate()['eval_loss']:.6f}")
