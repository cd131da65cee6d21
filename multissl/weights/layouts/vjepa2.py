"""V-JEPA 2's files (Assran et al. 2025, arXiv 2506.09985): plain names over tubelets, rotary positions.

Released files hold a position table as well, which the network does not use.
"""

from __future__ import annotations

from multissl.weights.conventions import Context, Conventions
from multissl.weights.layouts.plain_vit import PlainViT
from multissl.weights.unwrapping import Network, State


class VJEPA2(PlainViT):
    """V-JEPA 2."""

    name = "vjepa2"
    title = "V-JEPA 2"
    of_pictures = False
    heads = (*PlainViT.heads, "pos_embed$")

    def matches(self, network: Network) -> bool:
        """Return whether there are tubelets without a class token, a table, and biases apart."""
        if not super().matches(network) or {"cls_token", "pos_embed"} & network.state.keys():
            return False
        apart = "blocks.0.attn.q_bias" in network.state
        return network.state["patch_embed.proj.weight"].dim() == 5 and not apart

    def official(self, network: Network, context: Context) -> State:
        """Rename; of a gated net `fc1` is the gate, `fc2` the value, `fc3` what follows."""
        state = network.state
        if "blocks.0.mlp.fc3.weight" in state:
            parts = {".mlp.fc1.": ".mlp.w1.", ".mlp.fc2.": ".mlp.w2.", ".mlp.fc3.": ".mlp.w3."}
            for old, new in parts.items():
                state = {name.replace(old, new): t for name, t in state.items()}
        return super().official(network._replace(state=state), context)

    def conventions(self, state: State, context: Context) -> Conventions:
        """Return how facebookresearch/vjepa2 computes."""
        return Conventions(kind="rope", base=10000.0, pooling="mean", heads=context.config.get("num_heads"))
