"""The Llama 4 image encoder in NumPy float64, slow and simple: one tile, one head, one token of the grid at a time.

It shares no code with the model under test, and uses Hugging Face tensor names and layouts. Each name in `mutations`
adds one mistake, for tests that show that the parity tests detect it.
"""

import math

import numpy as np

MUTATIONS = (
    "tanh_gelu",
    "quick_gelu",
    "rope_row_before_column",
    "rope_from_zero",
    "rope_half_split",
    "rope_turns_class_token",
    "pixel_shuffle_swapped",
    "no_final_adapter_gelu",
    "class_token_first",
    "patch_channels_last",
    "no_pre_norm",
    "no_post_norm",
    "causal",
    "norms_without_bias",
)

erf = np.vectorize(math.erf)


class Llama4Vision:
    """`config`: the `vision_config` of a config.json; `weights`: arrays by Hugging Face name."""

    def __init__(self, config, weights, mutations=()):
        assert set(mutations) <= set(MUTATIONS), mutations
        self.c = config
        self.w = {name: np.asarray(w, np.float64) for name, w in weights.items()}
        self.mutations = set(mutations)

    def mutated(self, name):
        assert name in MUTATIONS
        return name in self.mutations

    def rows(self, pixel_values):
        """float[N, C, S, S] -> float64[N * P, D]: rows of the text model's embedding, in order."""
        projector = self.w["multi_modal_projector.linear_1.weight"]
        return np.concatenate([self.tile(tile) @ projector.T for tile in np.asarray(pixel_values, np.float64)])

    def tile(self, pixels):
        x = self.patches(pixels)
        token = self.w["vision_model.class_embedding"][None]
        x = np.concatenate([token, x] if self.mutated("class_token_first") else [x, token])
        x = x + self.w["vision_model.positional_embedding_vlm"]
        if not self.mutated("no_pre_norm"):
            x = self.norm(x, "vision_model.layernorm_pre")
        for j in range(self.c["num_hidden_layers"]):
            layer = f"vision_model.model.layers.{j}"
            x = x + self.attention(layer, self.norm(x, f"{layer}.input_layernorm"))
            h = self.affine(self.norm(x, f"{layer}.post_attention_layernorm"), f"{layer}.mlp.fc1")
            x = x + self.affine(self.gelu(h), f"{layer}.mlp.fc2")
        if not self.mutated("no_post_norm"):
            x = self.norm(x, "vision_model.layernorm_post")
        return self.adapter(self.shuffle(x[1:] if self.mutated("class_token_first") else x[:-1]))

    def side(self):
        return self.c["image_size"] // self.c["patch_size"]

    def patches(self, pixels):
        size, out = self.c["patch_size"], []
        for row in range(self.side()):
            for column in range(self.side()):
                patch = pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
                patch = patch.transpose(1, 2, 0) if self.mutated("patch_channels_last") else patch
                out.append(self.w["vision_model.patch_embedding.linear.weight"] @ patch.reshape(-1))
        return np.stack(out)

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * self.w[f"{name}.weight"]
        return x if self.mutated("norms_without_bias") else x + self.w[f"{name}.bias"]

    def affine(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def gelu(self, x):
        if self.mutated("tanh_gelu"):
            return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
        if self.mutated("quick_gelu"):
            return x / (1 + np.exp(-1.702 * x))
        return 0.5 * x * (1 + erf(x / math.sqrt(2)))

    def attention(self, layer, x):
        heads = self.c["num_attention_heads"]
        H = self.c["hidden_size"] // heads
        q, k, v = (self.affine(x, f"{layer}.self_attn.{p}_proj") for p in "qkv")
        out = np.zeros_like(q)
        for n in range(heads):
            part = slice(n * H, (n + 1) * H)
            turned = [np.stack([self.turn(y[t, part], t) for t in range(len(x))]) for y in (q, k)]
            scores = turned[0] @ turned[1].T / math.sqrt(H)
            if self.mutated("causal"):
                scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, part] = weights / weights.sum(-1, keepdims=True) @ v[:, part]
        return self.affine(out, f"{layer}.self_attn.o_proj")

    def turn(self, head, token):
        """Rotates one head of one token: the first half of the pairs with the patch's column, the rest with its row."""
        side, pairs = self.side(), len(head) // 2
        if self.mutated("class_token_first"):
            token = side**2 if token == 0 else token - 1
        out = head.copy()
        if token == side**2 and not self.mutated("rope_turns_class_token"):
            return out
        start = 0 if self.mutated("rope_from_zero") else 1
        column, row = token % side + start, token // side + start
        first, second = (row, column) if self.mutated("rope_row_before_column") else (column, row)
        for m in range(pairs):
            half = pairs // 2
            angle = (first if m < half else second) * self.c["rope_theta"] ** (-(m % half) / half)
            a, b = (m, m + pairs) if self.mutated("rope_half_split") else (2 * m, 2 * m + 1)
            out[a] = head[a] * math.cos(angle) - head[b] * math.sin(angle)
            out[b] = head[a] * math.sin(angle) + head[b] * math.cos(angle)
        return out

    def shuffle(self, x):
        n = round(1 / self.c["pixel_shuffle_ratio"])
        side, tokens = self.side(), []
        for row in range(side // n):
            for column in range(side // n):
                corner = [(dy, dx) for dy in range(n) for dx in range(n)]
                if self.mutated("pixel_shuffle_swapped"):
                    corner = [(dy, dx) for dx in range(n) for dy in range(n)]
                tokens.append(np.concatenate([x[(row * n + dy) * side + column * n + dx] for dy, dx in corner]))
        return np.stack(tokens)

    def adapter(self, x):
        x = self.gelu(x @ self.w["vision_model.vision_adapter.mlp.fc1.weight"].T)
        x = x @ self.w["vision_model.vision_adapter.mlp.fc2.weight"].T
        return x if self.mutated("no_final_adapter_gelu") else self.gelu(x)
