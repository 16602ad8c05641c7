/// Numbers and a target: an expression with each number exactly once.
struct CountdownTask: ASCIITaskRules {
    let count: Int
    /// Numbers are 1 to this.
    private static let largest = 25
    /// Products beyond this are not made.
    private static let largestValue = 999

    var longestPrompt: Int { 3 * count + 5 }
    var longestResponse: Int { 8 * count }

    func problem(_ draws: inout TaskDraws, demonstrated: inout TaskDraws, errorRate: Double)
        -> (prompt: [UInt8], response: [UInt8])
    {
        let numbers = (0..<count).map { _ in 1 + draws.below(Self.largest) }
        // A number that is not among them: reward 0, whatever the value.
        func written(_ number: Int) -> [UInt8] {
            var wrong = 1 + demonstrated.below(Self.largest)
            while numbers.contains(wrong) { wrong = wrong % Self.largest + 1 }
            return decimal(demonstrated.chance(errorRate) ? wrong : number)
        }
        var value = numbers[0]
        var response = written(numbers[0])
        for (place, number) in numbers.enumerated().dropFirst() {
            let sign: UInt8
            switch draws.below(4) {
            case 1 where value > number:
                sign = UInt8(ascii: "-")
                value -= number
            case 2 where value * number <= Self.largestValue:
                sign = UInt8(ascii: "*")
                value *= number
            case 3 where number > 1 && value % number == 0:
                sign = UInt8(ascii: "/")
                value /= number
            default:
                sign = UInt8(ascii: "+")
                value += number
            }
            if place > 1 { response = [UInt8(ascii: "(")] + response + [UInt8(ascii: ")")] }
            response += [sign] + written(number)
        }
        var shown = numbers
        for place in stride(from: count - 1, to: 0, by: -1) { shown.swapAt(place, draws.below(place + 1)) }
        var prompt = Array(shown.map(decimal).joined(separator: [UInt8(ascii: ",")]))
        prompt += [UInt8(ascii: ":")] + decimal(value) + [UInt8(ascii: "=")]
        return (prompt, response)
    }

    func isRight(_ response: [UInt8]?, for prompt: [UInt8]) -> Bool? {
        guard prompt.last == UInt8(ascii: "="), let colon = prompt.firstIndex(of: UInt8(ascii: ":")),
            let target = number(prompt[(colon + 1)...].dropLast())
        else { return nil }
        var numbers: [Int] = []
        for part in prompt[..<colon].split(separator: UInt8(ascii: ","), omittingEmptySubsequences: false) {
            guard let value = number(part) else { return nil }
            numbers.append(value)
        }
        guard let response else { return false }
        var expression = Expression(text: response)
        guard let value = expression.whole() else { return false }
        return value == target && expression.numbers.sorted() == numbers.sorted()
    }
}

/// Evaluates + - * / and parentheses over whole numbers, exactly: nil for what is none, leaves a rest or overflows.
private struct Expression {
    let text: [UInt8]
    var numbers: [Int] = []
    private var next = 0
    private var depth = 0

    init(text: [UInt8]) { self.text = text }

    private var character: UInt8? { next < text.count ? text[next] : nil }

    mutating func whole() -> Int? {
        guard let value = sum(), next == text.count else { return nil }
        return value
    }

    private mutating func sum() -> Int? {
        guard var value = product() else { return nil }
        while let sign = character, sign == UInt8(ascii: "+") || sign == UInt8(ascii: "-") {
            next += 1
            guard let other = product() else { return nil }
            let (result, overflow) =
                sign == UInt8(ascii: "+")
                ? value.addingReportingOverflow(other) : value.subtractingReportingOverflow(other)
            guard !overflow else { return nil }
            value = result
        }
        return value
    }

    private mutating func product() -> Int? {
        guard var value = factor() else { return nil }
        while let sign = character, sign == UInt8(ascii: "*") || sign == UInt8(ascii: "/") {
            next += 1
            guard let other = factor() else { return nil }
            if sign == UInt8(ascii: "*") {
                let (result, overflow) = value.multipliedReportingOverflow(by: other)
                guard !overflow else { return nil }
                value = result
            } else {
                guard other != 0, !(value == .min && other == -1), value % other == 0 else { return nil }
                value /= other
            }
        }
        return value
    }

    private mutating func factor() -> Int? {
        if character == UInt8(ascii: "(") {
            depth += 1
            guard depth <= 64 else { return nil }
            next += 1
            guard let value = sum(), character == UInt8(ascii: ")") else { return nil }
            next += 1
            depth -= 1
            return value
        }
        let start = next
        while let digit = character, (0x30...0x39).contains(digit) { next += 1 }
        guard let value = number(text[start..<next]) else { return nil }
        numbers.append(value)
        return value
    }
}
