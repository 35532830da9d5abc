"""Our stand-in for Hubble (Zhuang et al., KDD'20), whose equations are not public: attention over who liked what.

Knows `schema`, its features and graphs; not campaigns' tasks, pools or how it is judged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lookalike.model.bags import Entries
from lookalike.model.baselines.graph import Drawn, FanOut, LikeGraph, Sight
from lookalike.model.baselines.pooled_fields import PooledFields
from lookalike.schema import FeatureSchema


class Attention(nn.Module):
    """One layer for one side of the graph: a node's self part, and what it attends to among its neighbours.

    GraphSAGE's sum of the two (Hamilton et al., 2017), the neighbours weighed as in a graph attention network
    (Velickovic et al., 2018). A node without neighbours keeps its self part alone.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_part = nn.Linear(width, width)
        self.message = nn.Linear(width, width, bias=False)
        self.query = nn.Linear(width, 1)
        self.key = nn.Linear(width, 1, bias=False)

    def forward(self, nodes: Tensor, others: Tensor, near: Drawn) -> Tensor:
        """Nodes `[n, width]`, of which `near` names neighbours among the rows of `others`."""
        scores = self.query(nodes) + self.key(others).squeeze(1)[near.others]  # [n, fan_out]
        scores = nn.functional.leaky_relu(scores, 0.2).masked_fill(~near.present, -1e9)
        weights = scores.softmax(dim=1) * near.present
        messages = nn.functional.embedding_bag(
            near.others, self.message(others), mode="sum", per_sample_weights=weights
        )
        mixed: Tensor = self.self_part(nodes) + messages
        return mixed


class GraphModel(nn.Module):
    """Two layers of attention for users and for campaigns; who likes what is the product of what comes out, h2.

    The layers begin at h0, an MLP of a node's fields. Campaigns it is trained on have an embedding of their own as
    well, which is zero for any other.
    """

    def __init__(
        self, users: FeatureSchema, campaigns: FeatureSchema, known: int, *, k: int, width: int, init_std: float
    ) -> None:
        super().__init__()
        self.user_fields = PooledFields(users, k, init_std)
        self.campaign_fields = PooledFields(campaigns, k, init_std)
        self.user_start = _mlp(self.user_fields.width, width)
        self.campaign_start = _mlp(self.campaign_fields.width, width)
        self.known = nn.Parameter(torch.randn(known, width) * init_std)
        self.user_layers = nn.ModuleList([Attention(width), Attention(width)])
        self.campaign_layers = nn.ModuleList([Attention(width), Attention(width)])
        self.bias = nn.Parameter(torch.zeros(()))

    def start_users(self, users: Entries) -> Tensor:
        """h0 of users, `[users, width]`."""
        h0: Tensor = self.user_start(self.user_fields(users))
        return h0

    def start_campaigns(self, campaigns: Entries) -> Tensor:
        """h0 of campaigns but for their own embeddings, `[campaigns, width]`."""
        h0: Tensor = self.campaign_start(self.campaign_fields(campaigns))
        return h0

    def first(self, layer: nn.Module, nodes: Tensor, others: Tensor, near: Drawn) -> Tensor:
        """h1 of nodes from h0 of them and of the others."""
        h1: Tensor = layer(nodes, others, near).relu()
        return h1

    def like(self, users: Tensor, campaigns: Tensor) -> Tensor:
        """Log-odds `[...]` from h2 of users and campaigns, `[..., width]` each."""
        return (users * campaigns).sum(dim=-1) + self.bias

    def forward(self, sight: Sight, kept: Tensor) -> Tensor:
        """Log-odds `[pairs]` that each user of `sight` likes the campaign, from all edges but those asked about.

        Args:
            kept: `[campaigns, 1]`, 0 for those that shall do without their own embedding.

        Users reached as neighbours teach h0 nothing: each is asked about often enough, and a step takes half the time.
        """
        graph = sight.graph
        campaigns0 = self.start_campaigns(graph.campaigns) + self.known * kept  # all: they are few
        liked = sight.campaigns_of(sight.users)
        asked, pair = torch.unique(sight.campaigns, return_inverse=True)
        seen, place = torch.unique(torch.cat([asked, liked.others.reshape(-1)]), return_inverse=True)
        fans = sight.users_of(seen)
        with torch.no_grad():
            fans0 = self.start_users(graph.users.take(fans.others.reshape(-1).numpy()))  # [seen * fan_out, width]
        number = torch.arange(len(fans0)).view_as(fans.others)
        campaigns1 = self.first(self.campaign_layers[0], campaigns0[seen], fans0, Drawn(number, fans.present))

        users0 = self.start_users(graph.users.take(sight.users.numpy()))
        users1 = self.first(self.user_layers[0], users0, campaigns0, liked)
        near = Drawn(place[len(asked) :].view_as(liked.others), liked.present)
        users2 = self.user_layers[1](users1, campaigns1, near)

        where = place[: len(asked)]
        members = fans.others[where].reshape(-1)  # [asked * fan_out]
        members0 = fans0[number[where].reshape(-1)]
        members1 = self.first(self.user_layers[0], members0, campaigns0, sight.campaigns_of(members))
        near = Drawn(torch.arange(len(members)).view(len(asked), -1), fans.present[where])
        campaigns2 = self.campaign_layers[1](campaigns1[where], members1, near)
        return self.like(users2, campaigns2[pair])


class Frozen:
    """A trained model and its graph, for any users and campaigns; nothing is learnt, hidden or drawn at random.

    Computes h0 and h1 of the training campaigns once, from up to `fan_out.users` users each.
    """

    @torch.no_grad()
    def __init__(self, model: GraphModel, graph: LikeGraph, fan_out: FanOut) -> None:
        self.model = model
        self.graph = graph
        self.fan_out = fan_out
        fans = graph.of_campaign.first(torch.arange(len(graph.campaigns)), fan_out.users)
        # A campaign at a time: all their users' features at once would be far more than the result.
        fans0 = torch.cat([model.start_users(graph.users.take(users)) for users in fans.others.numpy()])
        near = Drawn(torch.arange(len(fans0)).view_as(fans.others), fans.present)
        self.campaigns0 = model.start_campaigns(graph.campaigns) + model.known
        self.campaigns1 = model.first(model.campaign_layers[0], self.campaigns0, fans0, near)

    @torch.no_grad()
    def users(self, users: Entries, nodes: Tensor) -> Tensor:
        """h2 `[users, width]`; `nodes` `[users]` are their numbers in the graph, or the one beyond for a stranger."""
        near = self.graph.of_user.first(nodes, self.fan_out.campaigns)
        _, users1 = self._early(users, near)
        h2: Tensor = self.model.user_layers[1](users1, self.campaigns1, near)
        return h2

    @torch.no_grad()
    def campaign(self, campaign: Entries, fans: Entries, nodes: Tensor) -> Tensor:
        """h2 `[width]` of a new campaign from its features (one row) and users who like it, as `users` has them."""
        fans0, fans1 = self._early(fans, self.graph.of_user.first(nodes, self.fan_out.campaigns))
        all_of_them = Drawn(torch.arange(len(nodes)).unsqueeze(0), torch.ones(1, len(nodes), dtype=torch.bool))
        layers, start = self.model.campaign_layers, self.model.start_campaigns(campaign)
        h2: Tensor = layers[1](self.model.first(layers[0], start, fans0, all_of_them), fans1, all_of_them)
        return h2.squeeze(0)

    def _early(self, users: Entries, near: Drawn) -> tuple[Tensor, Tensor]:
        users0 = self.model.start_users(users)
        return users0, self.model.first(self.model.user_layers[0], users0, self.campaigns0, near)


def _mlp(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width))
