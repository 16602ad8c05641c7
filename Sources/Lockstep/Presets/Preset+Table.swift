// The table of presets. What a row leaves out is the default of the options; docs/Presets.md shows it.

extension Preset {
    /// All presets, by whose they are.
    public static let all: [Preset] =
        paper() + scripts() + verl() + trl() + primeRL() + mlperf() + field()

    private static let published = "Qi et al. 2025, arXiv 2510.26788"

    private static func paper() -> [Preset] {
        let lengthNorm = "sums over tokens by the constant length"
        func preset(
            _ name: String, _ summary: String, _ policies: Policies, _ correction: CorrectionOptions,
            _ objective: ObjectiveOptions
        ) -> Preset {
            Preset(
                "paper/" + name, summary + "; " + lengthNorm, from: published, policies: policies, correction,
                .init(.drGRPO), objective)
        }
        let gradient = ObjectiveOptions(.reinforce, aggregation: .seqMeanTokenSumNorm)
        let clip = ObjectiveOptions(.clip, aggregation: .seqMeanTokenSumNorm, high: 1.28)
        return [
            preset(
                "pg-seq-is", "policy gradient, each sequence weighted by its exact ratio", .two,
                weights(.raw, .sequenceSum), gradient),
            preset(
                "pg-seq-tis", "policy gradient, sequence ratios truncated at C = 3", .two,
                weights(.truncate, .sequenceSum, 3), gradient),
            preset(
                "pg-seq-mis", "policy gradient, sequences with a ratio above C = 3 left out", .two,
                weights(.mask, .sequenceSum, 3), gradient),
            preset("grpo", "GRPO as if there were no mismatch", .three, weights(.one), clip),
            preset(
                "grpo-token-tis", "GRPO, each token weighted by its ratio truncated at C = 3 (Yao et al.)",
                .three, weights(.truncate, .token, 3), clip),
            preset(
                "grpo-seq-mis",
                "GRPO, each sequence weighted by its ratio, left out above C = 3 (Liu et al.)",
                .three, weights(.mask, .sequenceSum, 3), clip),
            gspo(
                "paper/gspo", from: published,
                doubts: "the mean over each sequence is that of GSPO's own paper"),
        ]
    }

    private static func scripts() -> [Preset] {
        let repository = "github.com/sail-sg/Precision-RL, on Oat"
        func preset(
            _ name: String, _ summary: String, script: String, doubts: String = "", _ policies: Policies,
            _ correction: CorrectionOptions, _ term: ObjectiveTerm
        ) -> Preset {
            Preset(
                "precision-rl/" + name, summary, from: repository + ": " + script, doubts: doubts,
                policies: policies,
                correction, .init(.drGRPO), .init(term, aggregation: .seqMeanTokenSumNorm))
        }
        return [
            preset(
                "grpo", "the script's GRPO: clip 0.2 both ways, where the paper has 0.28 above",
                script: "GRPO", .three, weights(.one), .clip),
            preset(
                "grpo-token-tis", "the script's: C = 2 and clip 0.2, where the paper has 3 and 0.28",
                script: "tis_c=2", .three, weights(.truncate, .token, 2), .clip),
            preset(
                "grpo-seq-mis", "the script's: C = 10 and clip 0.2, where the paper has 3 and 0.28",
                script: "ppo_use_seq_is", .three, weights(.mask, .sequenceSum, 10), .clip),
            preset(
                "pg-seq-is", "policy gradient, exact ratios of sequences: as the paper's",
                script: "use_seq_is without a limit",
                doubts: "that no limit is set is a reading of the code; no script was run", .two,
                weights(.raw, .sequenceSum), .reinforce),
            preset(
                "pg-seq-mis", "the script named MIS, which truncates at 3 where the paper leaves out",
                script: "bf16_seq_mis.sh, fp16_seq_mis.sh, seq_is_clip_max=3", .two,
                weights(.truncate, .sequenceSum, 3), .reinforce),
            gspo(
                "precision-rl/gspo", from: repository + ": GSPO; the clip is in the code",
                doubts: "the mean over each sequence is that of GSPO's own paper"),
        ]
    }

    private static func verl() -> [Preset] {
        var advantages = AdvantageOptions(.grpo)
        advantages.singles = .raw
        var clip = ObjectiveOptions(.clip)
        clip.dual = 3
        let truncated = weights(.truncate, .token, 2)
        let wholeTruncated = weights(.truncate, .sequenceSum, 2)
        let icepop = weights(.mask, .token, low: 0.5, 5)
        // Its k1 intervals are on rollout / trainer: inverted.
        let geometric = Rejection(.ratio, .sequenceMean, low: 1 / 1.001, high: 1 / 0.999)
        let k3 = Rejection(.k3, .sequenceMean, high: 0.01)
        let whole = Rejection(.ratio, .sequenceSum, low: 0.5, high: 2)
        let tokens = "tokens' ratios truncated at 2"
        let sequences = "sequences' ratios truncated at 2"
        let outside = "tokens with ratios outside [0.5, 5] left out"
        let drifted = "sequences off by 0.1 % in the geometric mean left out"
        let distant = "sequences with a mean k3 above 0.01 left out"
        func preset(
            _ name: String, _ what: String, _ correction: CorrectionOptions, _ rejection: Rejection? = nil
        ) -> Preset {
            var correction = correction
            if let rejection { correction.rejections = [rejection] }
            let bypasses = name.utf8.first == UInt8(ascii: "b")
            let corrects = correction.weights != .one || rejection != nil
            var objective = name.hasPrefix("bypass-pg") ? ObjectiveOptions(.reinforce) : clip
            if !bypasses && corrects { objective.denominator = .kept }
            return Preset(
                "verl/" + name,
                (name.hasPrefix("bypass-pg") ? "policy gradient" : "PPO")
                    + (bypasses ? " against the rollout, " : ", ") + what,
                from: "verl, RolloutCorrectionConfig",
                doubts: bypasses
                    ? "ORIGINAL holds where the trainer gives the loss its number of tokens; else verl counts the "
                        + "kept ones"
                    : corrects
                        ? "KEPT is inferred: the correction replaces the mask before the loss counts tokens"
                        : "",
                policies: bypasses ? .two : .three, correction, advantages, objective)
        }
        return [
            preset("decoupled-token-is", tokens, truncated),
            preset("decoupled-seq-is", sequences, wholeTruncated),
            preset("decoupled-token-icepop", outside, icepop),
            preset(
                "decoupled-seq-is-rs", sequences + ", those outside [0.5, 2] left out", wholeTruncated, whole),
            preset("decoupled-geo-rs", drifted, weights(.one), geometric),
            preset("decoupled-geo-rs-seq-tis", sequences + "; " + drifted, wholeTruncated, geometric),
            preset("decoupled-geo-rs-token-tis", tokens + "; " + drifted, truncated, geometric),
            preset("decoupled-k3-rs", distant, weights(.one), k3),
            preset("decoupled-k3-rs-seq-tis", sequences + "; " + distant, wholeTruncated, k3),
            preset("decoupled-k3-rs-token-tis", tokens + "; " + distant, truncated, k3),
            preset("bypass-ppo-clip", "whose clip is the only correction", weights(.one)),
            preset("bypass-ppo-clip-geo-rs", drifted, weights(.one), geometric),
            preset("bypass-ppo-clip-k3-rs", distant, weights(.one), k3),
            preset("bypass-pg-is", sequences, wholeTruncated),
            preset("bypass-pg-token-icepop", outside, icepop),
            preset("bypass-pg-geo-rs", drifted, weights(.one), geometric),
            preset("bypass-pg-geo-rs-seq-tis", sequences + "; " + drifted, wholeTruncated, geometric),
            preset("bypass-pg-geo-rs-token-tis", tokens + "; " + drifted, truncated, geometric),
            preset("disabled", "the mismatch ignored", weights(.one)),
        ]
    }

    private static func trl() -> [Preset] {
        var advantages = AdvantageOptions(.grpo)
        advantages.epsilon = 1e-4
        func preset(
            _ name: String, _ summary: String, doubts: String = "", _ term: ObjectiveTerm = .clip,
            _ aggregation: Aggregation = .tokenMean, _ ratioLevel: RatioLevel = .token, low: Double = 0.8,
            high: Double = 1.2, weights kind: CorrectionWeights = .mask,
            of level: CorrectionLevel = .sequenceSum
        ) -> Preset {
            var correction = weights(kind, level, 3)
            (correction.logRatioMin, correction.logRatioMax) = (-.infinity, .infinity)
            var objective = ObjectiveOptions(term, aggregation: aggregation, low: low, high: high)
            objective.ratioLevel = ratioLevel
            if term != .vespo { (objective.logRatioMin, objective.logRatioMax) = (-.infinity, .infinity) }
            objective.klInputMax = .infinity
            return Preset(
                "trl/" + name, summary, from: "TRL, GRPOConfig", doubts: doubts, correction, advantages,
                objective)
        }
        let rows = "TRL's mean is over all rows, ours over those with a token that counts"
        return [
            preset("dapo", "TRL's default loss_type, with its default correction"),
            preset("grpo", "loss_type=\"grpo\"", doubts: rows, .clip, .seqMeanTokenMean),
            preset("bnpo", "loss_type=\"bnpo\": the mean over the tokens of the local batch"),
            preset(
                "dr-grpo", "loss_type=\"dr_grpo\": length is max_completion_length", doubts: rows, .clip,
                .seqMeanTokenSumNorm),
            preset(
                "gspo", "loss_type=\"grpo\" with importance_sampling_level=\"sequence\"",
                doubts: "the clip is of GSPO's paper, TRL's default is 0.2; " + rows, .clip,
                .seqMeanTokenMean,
                .sequence, low: gspoLow, high: gspoHigh),
            preset(
                "cispo", "loss_type=\"cispo\" with the recommended epsilon_high=5",
                doubts: "TRL's default bound, 0.2, would hold on-policy weights at 0.2 and is refused here",
                .cispo, low: 0, high: 5),
            preset("sapo", "loss_type=\"sapo\"", doubts: rows, .sapo, .seqMeanTokenMean),
            preset(
                "luspo", "loss_type=\"luspo\" with sequence ratios", doubts: rows, .clip, .seqMeanTokenSum,
                .sequence),
            preset("vespo", "loss_type=\"vespo\": weights enter its exponent", .vespo),
            preset(
                "token-truncate", "vllm_importance_sampling_mode=\"token_truncate\", the default loss",
                weights: .truncate, of: .token),
            preset(
                "token-mask", "vllm_importance_sampling_mode=\"token_mask\", the default loss",
                weights: .mask, of: .token),
            preset(
                "sequence-truncate", "vllm_importance_sampling_mode=\"sequence_truncate\", the default loss",
                weights: .truncate),
            preset(
                "sequence-mask", "the default vllm_importance_sampling_mode, the default loss: trl/dapo"),
        ]
    }

    private static func primeRL() -> [Preset] {
        func preset(_ name: String, _ summary: String, _ bound: Double, _ side: Rejection.Side) -> Preset {
            var objective = ObjectiveOptions(.ratio)
            (objective.logRatioMin, objective.logRatioMax) = (-.infinity, .infinity)
            objective.kl = .k2
            objective.klCoefficient = 2e-3
            objective.klInputMax = .infinity
            let rejection = Rejection(
                .probabilityDifference, .token, low: -bound, high: bound, policies: .currentRollout,
                side: side)
            return Preset(
                name, summary + "; its kl_tau (ln ratio)^2 is k2 against the rollout", from: "prime-rl",
                policies: .two,
                weights(.one, rejections: [rejection]), .init(.drGRPO), objective)
        }
        return [
            preset("prime-rl", "the default loss: DPPO's mask of total variation", 0.2, .byAdvantage),
            preset("prime-rl/ipo", "the ipo loss", 0.1, .both),
        ]
    }

    private static func mlperf() -> [Preset] {
        [
            Preset(
                "mlperf", "the masks of MLPerf Training, LLM post-training, on GRPO",
                from: "github.com/mlcommons/training, llm_post_training",
                doubts:
                    "raw token weights are how NeMo RL's seq-mask-tis does it; the clip is a setting of the run, "
                    + "here 0.2 both ways",
                weights(
                    .raw, .token,
                    rejections: [
                        Rejection(.ratio, .sequenceMean, low: 0.999, high: 1.002),
                        Rejection(.expAbs, .sequenceMean, high: 2),
                    ]),
                .init(.grpo), .init(.clip))
        ]
    }

    private static func field() -> [Preset] {
        func preset(
            _ name: String, _ summary: String, from source: String, doubts: String = "",
            policies: Policies = .three, _ correction: CorrectionOptions = weights(.one),
            _ estimator: AdvantageEstimator = .grpo, _ objective: ObjectiveOptions = .init(.clip)
        ) -> Preset {
            Preset(
                name, summary, from: source, doubts: doubts, policies: policies, correction, .init(estimator),
                objective)
        }
        return [
            preset(
                "reinforce", "the policy gradient as if there were no mismatch", from: "Williams 1992",
                policies: .two,
                weights(.one), .drGRPO, .init(.reinforce)),
            preset(
                "pg-token-tis", "policy gradient, each token weighted by its ratio truncated at 3",
                from: "Yao et al. 2025", doubts: "3 is the bound of the paper's other estimators",
                policies: .two,
                weights(.truncate, .token, 3), .drGRPO, .init(.reinforce)),
            preset("ppo", "PPO with a critic", from: "Schulman et al. 2017", weights(.one), .gae),
            preset(
                "grpo", "GRPO; give kl and kl_coefficient for its divergence", from: "Shao et al. 2024",
                weights(.one), .grpo, .init(.clip, aggregation: .seqMeanTokenMean)),
            preset(
                "dr-grpo", "GRPO without its two biases", from: "Liu et al. 2025", weights(.one), .drGRPO,
                .init(.clip, aggregation: .seqMeanTokenSumNorm)),
            preset(
                "dapo", "clip-higher and the mean over tokens; add the overlong penalty to rewards",
                from: "Yu et al. 2025", weights(.one), .grpo, .init(.clip, high: 1.28)),
            gspo("gspo", from: "Zheng et al. 2025"),
            preset(
                "icepop", "GRPO, tokens with a ratio outside [0.5, 5] left out", from: "Ling Team 2025",
                doubts: "the clip of 0.2 both ways is the default", weights(.mask, .token, low: 0.5, 5),
                .grpo,
                .init(.clip)),
            preset(
                "opsm", "off-policy sequence masking", from: "DeepSeek-V3.2",
                doubts: "delta is a setting of the run: 1e-4 is slime's",
                weights(
                    .one,
                    rejections: [
                        Rejection(
                            .ratio, .sequenceMean, low: 0.9999000049998333, policies: .currentRollout,
                            side: .negativeAdvantage)
                    ])),
        ]
    }

    private static let gspoLow = 0.9997
    private static let gspoHigh = 1.0004

    private static func gspo(_ name: String, from source: String, doubts: String = "") -> Preset {
        var objective = ObjectiveOptions(
            .clip, aggregation: .seqMeanTokenMean, low: gspoLow, high: gspoHigh)
        objective.ratioLevel = .sequence
        return Preset(
            name, "GSPO: clipped ratios of sequences; it ignores the rollout", from: source, doubts: doubts,
            weights(.one), .init(.grpo), objective)
    }

    private static func weights(
        _ weights: CorrectionWeights, _ level: CorrectionLevel = .token, low: Double = 0,
        _ high: Double = .infinity, rejections: [Rejection] = []
    ) -> CorrectionOptions {
        CorrectionOptions(weights: weights, level: level, low: low, high: high, rejections: rejections)
    }
}
