"""What the "?" beside each figure says: what it shows, in a sentence, and where that was first described."""

FIGURE_HELP = {
    "input_rms": "What the norm divides each token by: the stream's root mean square, on a logarithmic scale. "
    "[RMSNorm](https://arxiv.org/abs/1910.07467)",
    "gain_quantiles": "How the norms' learnt gains are spread over the dimensions, layer by layer. "
    "[RMSNorm](https://arxiv.org/abs/1910.07467)",
    "massive_activations": "The largest entries of the stream against its median, layer by layer. "
    "[Massive activations](https://arxiv.org/abs/2402.17762)",
    "contribution_ratios": "What each sublayer adds, as a share of the stream's length before it. "
    "[After Kobayashi et al.](https://arxiv.org/abs/2004.10102)",
    "wavelengths": "After how many tokens each pair of dimensions has turned once; those beyond the context never do. "
    "[RoPE](https://arxiv.org/abs/2104.09864), [critical dimension](https://arxiv.org/abs/2310.05209)",
    "decay": "How far the sum over pairs can reach at each distance: what RoPE alone lets attention fade by. "
    "[RoPE, section 3.4.3](https://arxiv.org/abs/2104.09864)",
    "band_contribution": "What each frequency pair adds to this head's scores on this prompt; the signed bars sum to "
    "the score, and the green ones below are shares of the size. [Round and round we go](https://arxiv.org/abs/2410.06205)",
    "score_by_distance": "This head's scores by how far the key lies back, with their spread, and what position "
    "alone would give. [RoPE](https://arxiv.org/abs/2104.09864)",
    "relative_invariance": "How far a score moves when query and key move together, by type of numbers: "
    "rounding alone. [RoPE](https://arxiv.org/abs/2104.09864)",
    "what_if": "The pattern that the same queries and keys give under the other rotation, less the head's own. "
    "[Position interpolation](https://arxiv.org/abs/2306.15595), [YaRN](https://arxiv.org/abs/2309.00071)",
    "lens_grid": "The likeliest next token by the stream after each layer, through the final norm and the unembedding. "
    "[Logit lens](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)",
    "token_curves": "How the target tokens rise through the layers at the chosen position. "
    "[Logit lens](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)",
    "attribution": "What the embedding, every head and every MLP add to the logit; the parts sum to it. "
    "[Direct logit attribution](https://arxiv.org/abs/2211.00593)",
    "neuron_statistics": "Layer by layer, how many gates are open, and how sparse the activations are. "
    "[SwiGLU](https://arxiv.org/abs/2002.05202)",
    "activations": "The neuron's gate times its value, token by token. [SwiGLU](https://arxiv.org/abs/2002.05202)",
    "neuron_tokens": "The tokens whose logits the neuron raises and lowers most, through the unembedding alone. "
    "[Geva et al.](https://arxiv.org/abs/2203.14680)",
    "shift": "How far the prediction moves at each position, and the rise of the loss on the next token of the text. "
    "[Ablation](https://arxiv.org/abs/2211.00593)",
    "logit_differences": "How far B's predictions are from A's at each position, and where the first choice differs. "
    "[KL divergence](https://doi.org/10.1214/aoms/1177729694)",
    "surprise": "How unlikely each generated token was, and how open the choice: its negative log-probability and the "
    "entropy before it. [Nucleus sampling](https://arxiv.org/abs/1904.09751)",
    "atlas": "One square for each head, coloured by what its attention does here; brackets join heads that share keys "
    "and values. [Induction heads](https://arxiv.org/abs/2209.11895), [sinks](https://arxiv.org/abs/2309.17453), "
    "[grouped queries](https://arxiv.org/abs/2305.13245)",
    "head_map": "How each query (row) spreads its attention over the keys (columns) before it; a row sums to 1. "
    "[Attention](https://arxiv.org/abs/1706.03762)",
    "side_by_side": "The chosen head's attention in A and in B on one colour scale, and B less A. "
    "[Attention](https://arxiv.org/abs/1706.03762)",
    "compared_heads": "How far each head in B is from the same head in A, over the tokens that both share. "
    "[Ablation](https://arxiv.org/abs/2211.00593)",
    "head_changes": "How far each head's output moves, as a share of its size before. "
    "[Ablation](https://arxiv.org/abs/2211.00593)",
    "heads": "What every head's output adds, by itself, to one logit less another. "
    "[Direct logit attribution](https://arxiv.org/abs/2211.00593)",
    "forest": "Each task's score with its 95% interval: where another sample of questions could have put it. "
    "[Error bars for evaluations](https://arxiv.org/abs/2411.00640)",
    "differences": "B less A on the questions both answered, with 95% intervals; filled where Holm's p is below 5%. "
    "[Error bars for evaluations](https://arxiv.org/abs/2411.00640)",
}
"""By the `kind` that a figure carries, or what a page shows with it. Ours: read as Markdown."""
