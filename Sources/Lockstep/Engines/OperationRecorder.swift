/// Compares what the operations of two engines give for the same rows: the first's is kept in float32 until the
/// second's comes.
///
/// The operations inside of experts are left out: two engines may send other rows to an expert.
final class OperationRecorder {
    /// By layer, in the order they are done.
    private(set) var found: [Difference] = []
    /// What went wrong inside an engine, where nothing can be thrown.
    private(set) var failure: LockstepError?
    private let model: Model
    private var kept: [Values] = []
    private var places: [String: Int] = [:]
    /// Operations of the rows at hand that the first, and the second, engine has given.
    private var (keptCount, comparedCount) = (0, 0)
    private let second: Values

    /// Floats that grow.
    private final class Values {
        private var floats: Scratch<Float>
        private(set) var count = 0

        init() throws(LockstepError) { floats = try Scratch(count: 0) }

        func set(_ values: UnsafeRawPointer, _ format: Format, _ count: Int) throws(LockstepError) {
            if floats.count < count { floats = try Scratch(count: count) }
            self.count = count
            try convert(
                TensorView(values, format, shape: [count]),
                into: MutableTensorView(base, .fp32, shape: [count]))
        }

        var base: UnsafeMutablePointer<Float> { floats.base }
    }

    /// For engines of the shape of `model`.
    init(_ model: Model) throws(LockstepError) {
        self.model = model
        second = try Values()
    }

    /// Whether an operation of a layer gives a row for every row it is given.
    static func isWhole(_ operation: StaticString, layer: Int, of model: Model) -> Bool {
        guard model.layers.indices.contains(layer), case .experts = model.layers[layer].feedForward else {
            return true
        }
        return !["MLP gate and up", "MLP activation", "MLP down"].contains("\(operation)")
    }

    /// Begins with other rows.
    func begin() { (keptCount, comparedCount) = (0, 0) }

    /// Takes what an operation of the first engine gave.
    func keep(
        _ layer: Int, _ operation: StaticString, _ values: UnsafeRawPointer, _ format: Format, _ count: Int
    ) {
        guard OperationRecorder.isWhole(operation, layer: layer, of: model) else { return }
        attempt { () throws(LockstepError) in
            if keptCount == kept.count { kept.append(try Values()) }
            try kept[keptCount].set(values, format, count)
            keptCount += 1
        }
    }

    /// Takes what the same operation of the second engine gave, for `rows` rows.
    func compare(
        _ layer: Int, _ operation: StaticString, _ values: UnsafeRawPointer, _ format: Format, _ count: Int,
        rows: Int
    ) {
        guard failure == nil, OperationRecorder.isWhole(operation, layer: layer, of: model) else { return }
        guard comparedCount < keptCount, kept[comparedCount].count == count else {
            failure = LockstepError(
                .internalError, "\(operation) of layer \(layer): the engines' shapes differ")
            return
        }
        attempt { () throws(LockstepError) in try second.set(values, format, count) }
        if failure != nil { return }
        let key = "\(layer) \(operation)"
        let place = places[key] ?? found.count
        if place == found.count {
            places[key] = place
            found.append(Difference("\(operation)", layer: layer, columns: count / rows))
        }
        found[place].add(kept[comparedCount].base, second.base, rows: rows)
        comparedCount += 1
    }

    private func attempt(_ body: () throws(LockstepError) -> Void) {
        do throws(LockstepError) { try body() } catch { failure = failure ?? error }
    }
}
