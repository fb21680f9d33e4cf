"""PPO on a cart with a pole, after CleanRL's ppo.py; the carts are NumPy."""

import argparse
import random

import numpy as np
import torch
from torch import nn, optim
from torch.distributions import Categorical

import onward

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--num-iterations", type=int, default=60)
parser.add_argument("--num-envs", type=int, default=8)
parser.add_argument("--num-steps", type=int, default=64)
parser.add_argument("--num-minibatches", type=int, default=4)
parser.add_argument("--update-epochs", type=int, default=4)
parser.add_argument("--lr", type=float, default=2.5e-3)
parser.add_argument("--gamma", type=float, default=0.99)
parser.add_argument("--gae-lambda", type=float, default=0.95)
parser.add_argument("--clip-coef", type=float, default=0.2)
parser.add_argument("--ent-coef", type=float, default=0.01)
parser.add_argument("--vf-coef", type=float, default=0.5)
parser.add_argument("--max-grad-norm", type=float, default=0.5)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--save", default="ppo.pt", help="file for the weights")
args = parser.parse_args()


class CartPoles:
    """Several carts at once; one whose pole falls begins anew."""

    def __init__(self, number, seed):
        self.rng = np.random.default_rng(seed)
        self.state = self.fresh(number)

    def fresh(self, number):
        return np.pad(self.rng.uniform(-0.05, 0.05, (number, 4)), ((0, 0), (0, 1)))

    def set_state(self, saved):
        self.state = np.array(saved)

    def observe(self):
        return torch.from_numpy(self.state[:, :4]).float()

    def step(self, actions):
        x, v, angle, turn, age = self.state.T
        push = (np.where(actions == 1, 10.0, -10.0) + 0.05 * turn**2 * np.sin(angle)) / 1.1
        inertia = 0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1)
        turning = (9.8 * np.sin(angle) - np.cos(angle) * push) / inertia
        moving = push - 0.05 * turning * np.cos(angle) / 1.1
        moved = [x + 0.02 * v, v + 0.02 * moving, angle + 0.02 * turn, turn + 0.02 * turning]
        self.state = np.stack([*moved, age + 1], 1)
        done = (abs(self.state[:, 0]) > 2.4) | (abs(self.state[:, 2]) > 0.21) | (age + 1 >= 500)
        returns = self.state[done, 4]
        self.state[done] = self.fresh(done.sum())
        return self.observe(), torch.ones(len(done)), torch.from_numpy(done).float(), returns


def layer_init(layer, std=2**0.5):
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = self.network(1, std=1.0)
        self.actor = self.network(2, std=0.01)

    def network(self, num_outputs, std):
        hidden = [layer_init(nn.Linear(4, 64)), nn.Tanh(), layer_init(nn.Linear(64, 64)), nn.Tanh()]
        return nn.Sequential(*hidden, layer_init(nn.Linear(64, num_outputs), std))

    def get_value(self, x):
        return self.critic(x).squeeze(-1)

    def get_action_and_value(self, x, action=None):
        chosen = Categorical(logits=self.actor(x))
        if action is None:
            action = chosen.sample()
        return action, chosen.log_prob(action), chosen.entropy(), self.get_value(x)


random.seed(args.seed)
np.random.seed(args.seed)
torch.manual_seed(args.seed)
envs = CartPoles(args.num_envs, args.seed)
agent = Agent()
optimizer = optim.Adam(agent.parameters(), lr=args.lr, eps=1e-5)
batch_size = args.num_envs * args.num_steps
minibatch_size = batch_size // args.num_minibatches

shape = (args.num_steps, args.num_envs)
obs, actions = torch.zeros(*shape, 4), torch.zeros(shape)
logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))
loop = {"global_step": 0, "next_obs": envs.observe(), "next_done": torch.zeros(args.num_envs)}

state = {"agent": agent, "optimizer": optimizer, "loop": loop, "envs_rng": envs.rng}
state["envs"] = onward.Part(lambda: envs.state, envs.set_state)
with onward.open_run(state, config=vars(args), maximize="episodic_return") as run:
    for iteration in run.steps(range(1, args.num_iterations + 1)):
        global_step, next_obs, next_done = loop.values()
        optimizer.param_groups[0]["lr"] = args.lr * (1 - (iteration - 1) / args.num_iterations)
        episodes = []
        for step in range(args.num_steps):
            global_step += args.num_envs
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                action, logprobs[step], _, values[step] = agent.get_action_and_value(next_obs)
            actions[step] = action
            next_obs, rewards[step], next_done, returns = envs.step(action.numpy())
            episodes.extend(returns)

        with torch.no_grad():
            advantages, last = torch.zeros(shape), 0.0
            next_value = agent.get_value(next_obs)
            for t in reversed(range(args.num_steps)):
                is_last = t == args.num_steps - 1
                going_on = 1.0 - (next_done if is_last else dones[t + 1])
                after = next_value if is_last else values[t + 1]
                delta = rewards[t] + args.gamma * after * going_on - values[t]
                advantages[t] = last = delta + args.gamma * args.gae_lambda * going_on * last
            b_returns = (advantages + values).flatten()

        b_obs, b_actions = obs.reshape(-1, 4), actions.flatten()
        b_logprobs, b_advantages = logprobs.flatten(), advantages.flatten()
        b_inds = np.arange(batch_size)
        for _ in range(args.update_epochs):
            np.random.shuffle(b_inds)
            for start in range(0, batch_size, minibatch_size):
                mb = torch.from_numpy(b_inds[start : start + minibatch_size].copy())
                _, logprob, entropy, value = agent.get_action_and_value(b_obs[mb], b_actions[mb])
                ratio = (logprob - b_logprobs[mb]).exp()
                adv = b_advantages[mb]
                adv = (adv - adv.mean()) / (adv.std() + 1e-8)
                clipped = torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)
                pg_loss = torch.max(-adv * ratio, -adv * clipped).mean()
                v_loss = 0.5 * ((value - b_returns[mb]) ** 2).mean()
                loss = pg_loss - args.ent_coef * entropy.mean() + args.vf_coef * v_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
                optimizer.step()

        episodic_return = np.mean(episodes) if episodes else envs.state[:, 4].mean()
        loop.update(global_step=global_step, next_obs=next_obs, next_done=next_done)
        run.log(episodic_return=episodic_return)
        run.log(value_loss=v_loss, policy_loss=pg_loss, step=global_step)

torch.save(agent.state_dict(), args.save)
