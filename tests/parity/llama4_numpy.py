"""The Llama 4 text model in NumPy float64, slow and simple: one token, one head, one expert at a time.

It shares no code with the model under test, and uses Hugging Face tensor names and layouts. Rotary angles are float32,
as in the public model; everything else is float64. Each name in `mutations` adds one mistake, for tests that show that
the parity tests detect it.
"""

import math

import numpy as np

MUTATIONS = (
    "score_on_output",
    "router_softmax",
    "up_gate_swapped",
    "gate_up_interleaved",
    "half_split_rope",
    "nope_at_multiples_of_four",
    "gqa_tiled",
    "sliding_window",
    "no_chunking",
    "temperature_off",
    "temperature_from_zero",
    "qk_norm_eps_1e_6",
    "qk_norm_true_l2",
    "qk_norm_flipped",
)


class Llama4:
    """`config`: a config.json as a dict (explicit lists); `weights`: arrays by Hugging Face text-only name."""

    def __init__(self, config, weights, mutations=()):
        unknown = set(mutations) - set(MUTATIONS)
        assert not unknown, unknown
        self.c = config
        self.w = {name: np.asarray(w, np.float64) for name, w in weights.items()}
        self.mutations = set(mutations)

    def mutated(self, name):
        assert name in MUTATIONS
        return name in self.mutations

    def logits(self, tokens, positions=None, segment_ids=None):
        """int[T] -> float64[T, V]. `positions` and `segment_ids` as in the model, for one row."""
        T = len(tokens)
        positions = list(range(T)) if positions is None else [int(p) for p in positions]
        segments = [1] * T if segment_ids is None else [int(s) for s in segment_ids]
        h = np.stack([self.w["model.embed_tokens.weight"][t] for t in tokens])
        for i in range(self.c["num_hidden_layers"]):
            h = h + self.attention(i, self.norm(h, f"model.layers.{i}.input_layernorm"), positions, segments)
            x = self.norm(h, f"model.layers.{i}.post_attention_layernorm")
            if i in self.c["moe_layers"]:
                h = h + np.stack([self.mixture(i, x[t]) for t in range(T)])
            else:
                h = h + np.stack([self.dense(f"model.layers.{i}.feed_forward", x[t]) for t in range(T)])
        return self.norm(h, "model.norm") @ self.w["lm_head.weight"].T

    # ---- norms and feed-forward ------------------------------------------------------------------------------------

    def norm(self, x, name):
        rms = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self.c["rms_norm_eps"])
        return x / rms * self.w[name + ".weight"]

    def gated(self, x, gate, up, down):
        """The three matrices have shape [in, out]."""
        if self.mutated("up_gate_swapped"):
            gate, up = up, gate
        return (silu(x @ gate) * (x @ up)) @ down

    def dense(self, prefix, x):
        gate, up, down = (self.w[f"{prefix}.{part}_proj.weight"].T for part in ("gate", "up", "down"))
        return self.gated(x, gate, up, down)

    def expert(self, prefix, e, x):
        both = self.w[f"{prefix}.experts.gate_up_proj"][e]
        width = both.shape[1] // 2
        gate, up = both[:, :width], both[:, width:]
        if self.mutated("gate_up_interleaved"):
            gate, up = both[:, 0::2], both[:, 1::2]
        return self.gated(x, gate, up, self.w[f"{prefix}.experts.down_proj"][e])

    def mixture(self, layer, x):
        """Every chosen expert gets its own scaled copy of the input; outputs are summed without weights."""
        prefix = f"model.layers.{layer}.feed_forward"
        router = self.w[f"{prefix}.router.weight"] @ x
        chosen = sorted(range(len(router)), key=lambda e: (-router[e], e))[: self.c["num_experts_per_tok"]]
        y = self.dense(f"{prefix}.shared_expert", x)
        for e in chosen:
            score = 1 / (1 + math.exp(-router[e]))
            if self.mutated("router_softmax"):
                score = math.exp(router[e]) / sum(math.exp(r) for r in router)
            if self.mutated("score_on_output"):
                y = y + score * self.expert(prefix, e, x)
            else:
                y = y + self.expert(prefix, e, score * x)
        return y

    # ---- attention -------------------------------------------------------------------------------------------------

    def uses_rope(self, layer):
        if self.mutated("nope_at_multiples_of_four"):
            return layer % 4 != 0
        return bool(self.c["no_rope_layers"][layer])

    def attention(self, layer, x, positions, segments):
        N, K, H = (self.c[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
        T, rope = len(x), self.uses_rope(layer)
        wq, wk, wv, wo = (self.w[f"model.layers.{layer}.self_attn.{p}_proj.weight"] for p in "qkvo")
        out = np.zeros((T, N * H))
        for n in range(N):
            g = n % K if self.mutated("gqa_tiled") else n // (N // K)
            q, k, v = x @ wq[n * H : (n + 1) * H].T, x @ wk[g * H : (g + 1) * H].T, x @ wv[g * H : (g + 1) * H].T
            for t in range(T):
                q[t], k[t] = self.position(q[t], k[t], positions[t], rope)
            for t in range(T):
                same = [s for s in range(T) if segments[s] == segments[t]]
                seen = [s for s in same if self.sees(positions[t], positions[s], rope)]
                scores = np.array([q[t] @ k[s] / math.sqrt(H) for s in seen])
                weights = np.exp(scores - scores.max())
                weights /= weights.sum()
                out[t, n * H : (n + 1) * H] = sum(w * v[s] for w, s in zip(weights, seen, strict=True))
        return out @ wo.T

    def sees(self, query, key, rope):
        chunk = self.c["attention_chunk_size"]
        if key > query:
            return False
        if not rope or chunk is None or self.mutated("no_chunking"):
            return True
        if self.mutated("sliding_window"):
            return query - key < chunk
        return query // chunk == key // chunk

    def position(self, q, k, p, rope):
        """Applies rotary embedding, norm or temperature to one query and one key at position `p`."""
        if rope:
            q, k = self.rotate(q, p), self.rotate(k, p)
            if self.c["use_qk_norm"] != self.mutated("qk_norm_flipped"):
                q, k = self.head_norm(q), self.head_norm(k)
            return q, k
        if self.c["attn_temperature_tuning"] and not self.mutated("temperature_off"):
            count = p if self.mutated("temperature_from_zero") else p + 1
            q = q * (1 + self.c["attn_scale"] * math.log(1 + count // self.c["floor_scale"]))
        return q, k

    def head_norm(self, x):
        if self.mutated("qk_norm_true_l2"):
            return x / math.sqrt(np.sum(x**2) + self.c["rms_norm_eps"])
        eps = 1e-6 if self.mutated("qk_norm_eps_1e_6") else self.c["rms_norm_eps"]
        return x / math.sqrt(np.mean(x**2) + eps)

    def rotate(self, x, p):
        out, H = x.copy(), len(x)
        for j in range(H // 2):
            angle = float(np.float32(p) * self.frequency(j))
            a, b = (j, j + H // 2) if self.mutated("half_split_rope") else (2 * j, 2 * j + 1)
            out[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
            out[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
        return out

    def frequency(self, j):
        """Radians per position of pair `j`, float32. The "llama3" rule stretches long wavelengths."""
        r, H = self.c["rope_parameters"], self.c["head_dim"]
        f = np.float32(1) / np.float32(r["rope_theta"]) ** (np.float32(2 * j) / np.float32(H))
        if r["rope_type"] == "default":
            return f
        low, high, original = r["low_freq_factor"], r["high_freq_factor"], r["original_max_position_embeddings"]
        wavelength = 2 * math.pi / f
        if wavelength < original / high:
            return f
        if wavelength > original / low:
            return f / np.float32(r["factor"])
        m = np.float32((original / wavelength - low) / (high - low)) if high != low else np.float32(1)
        return (1 - m) * f / np.float32(r["factor"]) + m * f


def silu(x):
    return x / (1 + np.exp(-x))
