"""Help texts for the "?" next to each figure: what it shows, in one sentence, and the source that describes it."""

FIGURE_HELP = {
    "input_rms": "The root mean square of the residual stream at each token, by which the norm divides it; logarithmic "
    "scale. [RMSNorm](https://arxiv.org/abs/1910.07467)",
    "gain_quantiles": "The distribution of the norms' learned gains over the dimensions, for each layer. "
    "[RMSNorm](https://arxiv.org/abs/1910.07467)",
    "massive_activations": "The largest absolute values in the residual stream and the median, for each layer. "
    "[Massive activations](https://arxiv.org/abs/2402.17762)",
    "contribution_ratios": "The norm of each sublayer's output, divided by the norm of the residual stream before it. "
    "[After Kobayashi et al.](https://arxiv.org/abs/2004.10102)",
    "wavelengths": "The number of tokens in which each pair of dimensions makes one full rotation. Pairs above the "
    "context length never complete one. [RoPE](https://arxiv.org/abs/2104.09864), "
    "[critical dimension](https://arxiv.org/abs/2310.05209)",
    "decay": "How attention decays with distance through RoPE alone: the mean size of the partial sums over frequency "
    "pairs, which bounds the score, and the sum of cosines. [RoPE, section 3.4.3](https://arxiv.org/abs/2104.09864)",
    "band_contribution": "The contribution of each frequency pair to this head's scores on this prompt. The signed "
    "bars sum to the score; the green bars show each pair's share of the absolute size. "
    "[Round and round we go](https://arxiv.org/abs/2410.06205)",
    "score_by_distance": "This head's scores by distance between query and key: the mean, the spread, and the score "
    "from position alone. [RoPE](https://arxiv.org/abs/2104.09864)",
    "relative_invariance": "How much a score changes when query and key move together, for each type of arithmetic. In "
    "exact arithmetic it does not change: this is rounding error. [RoPE](https://arxiv.org/abs/2104.09864)",
    "what_if": "The pattern of the same queries and keys under the other rotation, minus the head's own pattern. "
    "[Position interpolation](https://arxiv.org/abs/2306.15595), [YaRN](https://arxiv.org/abs/2309.00071)",
    "lens_grid": "The most likely next token after each layer: the residual stream there, passed through the final "
    "norm and the unembedding. "
    "[Logit lens](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)",
    "token_curves": "The log-probability or rank of the target tokens after each layer, at the chosen position. "
    "[Logit lens](https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens)",
    "attribution": "The contributions of the embedding, every head and every MLP to the logit. They sum to the logit. "
    "[Direct logit attribution](https://arxiv.org/abs/2211.00593)",
    "neuron_statistics": "For each layer, the share of open gates and the sparsity of the activations. "
    "[SwiGLU](https://arxiv.org/abs/2002.05202)",
    "activations": "The neuron's activation (gate times value) at each token. [SwiGLU](https://arxiv.org/abs/2002.05202)",
    "neuron_tokens": "The tokens whose logits the neuron raises and lowers most, directly through the unembedding. "
    "[Geva et al.](https://arxiv.org/abs/2203.14680)",
    "shift": "How much the prediction changes at each position (KL divergence), and how much the loss on the next "
    "token rises. [Ablation](https://arxiv.org/abs/2211.00593)",
    "logit_differences": "The difference between A's and B's predictions at each position, and the positions where the "
    "most likely token differs. [KL divergence](https://doi.org/10.1214/aoms/1177729694)",
    "surprise": "For each generated token, its negative log-probability (how unexpected it was) and the entropy of the "
    "distribution before it (how open the choice was). [Nucleus sampling](https://arxiv.org/abs/1904.09751)",
    "atlas": "One square for each head, coloured by its attention on this prompt. Brackets join heads that share keys "
    "and values. [Induction heads](https://arxiv.org/abs/2209.11895), [sinks](https://arxiv.org/abs/2309.17453), "
    "[grouped queries](https://arxiv.org/abs/2305.13245)",
    "head_map": "The attention of each query (row) to the keys (columns) up to its position. Each row sums to 1. "
    "[Attention](https://arxiv.org/abs/1706.03762)",
    "side_by_side": "The chosen head's attention in A and in B, on one colour scale, and B minus A. "
    "[Attention](https://arxiv.org/abs/1706.03762)",
    "compared_heads": "The distance between each head in A and the same head in B, over the tokens that both share. "
    "[Ablation](https://arxiv.org/abs/2211.00593)",
    "head_changes": "The change of each head's output, as a share of its size before the intervention. "
    "[Ablation](https://arxiv.org/abs/2211.00593)",
    "heads": "The direct contribution of each head's output to the difference of two logits. "
    "[Direct logit attribution](https://arxiv.org/abs/2211.00593)",
    "forest": "Each task's score with its 95% confidence interval, which covers the uncertainty from the choice of "
    "questions. [Error bars for evaluations](https://arxiv.org/abs/2411.00640)",
    "differences": "B minus A on the questions that both answered, with 95% confidence intervals. A marker is filled "
    "if its Holm-corrected p-value is below 5%. [Error bars for evaluations](https://arxiv.org/abs/2411.00640)",
}
"""By a figure's `kind`, or by the name of what a page shows with it. Read as Markdown."""
