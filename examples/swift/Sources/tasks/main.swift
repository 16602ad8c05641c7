// Problems whose answers can be checked: of each built-in task a prompt, a solution, a demonstration with errors, and
// what they are worth. Then a file of one's own.
import Foundation
import Lockstep

func judge(_ what: String, _ task: VerifiableTask, _ response: [Int32]) throws {
    let text = try task.vocabulary.decode(response).trimmingCharacters(in: .init(charactersIn: "\n\u{3}"))
    let reward = try task.reward(prompt: task.prompt(0, seed: 1), response: response)
    print(String(format: "    %@ %@: %.0f", what, text, reward))
}

for name in VerifiableTask.names {
    let task = try VerifiableTask(name)
    print("\(name): \(try task.vocabulary.decode(task.prompt(0, seed: 1)))")
    try judge("solution", task, task.demonstration(0, seed: 1))
    try judge("flawed", task, task.demonstration(0, seed: 1, errorRate: 0.5))
}

let file = FileManager.default.temporaryDirectory.appendingPathComponent("\(UUID()).jsonl")
try #"{"prompt": "What is 6 times 7?", "answer": "6 x 7 is 42, so # 42"}"#
    .write(to: file, atomically: true, encoding: .utf8)
let task = try VerifiableTask("file:\(file.path)")
try FileManager.default.removeItem(at: file)
print("file: \(try task.vocabulary.decode(task.prompt(0, seed: 1)))")
for answer in ["# 42", "7 times 6 is # 42", "so 42"] {
    try judge("response", task, task.vocabulary.encode(answer) + [task.stopID!])
}
