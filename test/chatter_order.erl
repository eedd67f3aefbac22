%% Processes that send each other signals of all kinds, by a seed, and check the order that Erlang
%% promises between each two of them. Runs on the nodes themselves.
%%
%% A *receiver* has a name, aliases, and a number of senders on other nodes. What a *sender* sends
%% is numbered as far as the receiver can see it: messages to its identifier, its name and an
%% alias, small and in fragments, and exit/2. In between it links and unlinks, monitors (by
%% identifier and name) and demonitors, changes the receiver's group leader, asks for answers,
%% and starts *children* on the receiver's node, which send it numbered messages and exit.
%%
%% In the end one side exits, and the other must see, after the last message: a DOWN for each
%% monitor that is left, from the identifier or name that was monitored, an EXIT if they are
%% linked, and nothing else. Which side, the receiver says: `senders_first' or `receiver_first'.
%%
%% Processes: a keeper on each node, registered as chatter_order, starts the others, monitors
%% them, and keeps how they ended.
-module(chatter_order).

-export([start/0, receiver/2, sender/3, outcome/0]).
-export([child/4]).

-export_type([receiver/0]).

-type receiver() :: #{pid := pid(), name := atom(), node := node(),
                      mode := senders_first | receiver_first}.

-define(PATIENCE_MS, 60000).
-define(QUIET_MS, 200).
-define(ATOMS, 4000).
-define(MOST_MONITORS, 20).
-define(MOST_CHILDREN, 10).

%%% ------------------------------------------------------------------------------------
%%% The keeper

%% Starts the keeper of this node, in place of an earlier one.
-spec start() -> ok.
start() ->
    _ = [exit(Old, kill) || Old <- [whereis(?MODULE)], is_pid(Old)],
    Self = self(),
    _ = spawn(fun() -> registered(?MODULE), Self ! kept, keep(#{}, [], []) end),
    receive kept -> ok end.

registered(Name) ->
    try register(Name, self()) catch error:badarg -> erlang:yield(), registered(Name) end.

keep(Running, Counts, Wrong) ->
    receive
        {start, From, Fun} ->
            {Pid, Ref} = spawn_monitor(Fun),
            From ! {started, Pid},
            keep(Running#{Ref => Pid}, Counts, Wrong);
        {'DOWN', Ref, process, _, {fine, Count}} ->
            keep(maps:remove(Ref, Running), [Count | Counts], Wrong);
        {'DOWN', Ref, process, _, {over, _, _, Count}} ->
            keep(maps:remove(Ref, Running), [Count | Counts], Wrong);
        {'DOWN', Ref, process, Pid, Reason} ->
            keep(maps:remove(Ref, Running), Counts, [{Pid, Reason} | lists:sublist(Wrong, 9)]);
        {outcome, From} ->
            From ! {outcome, #{running => maps:values(Running), signals => lists:sum(Counts),
                               wrong => Wrong}},
            keep(Running, Counts, Wrong)
    end.

run(Fun) ->
    ?MODULE ! {start, self(), Fun},
    receive {started, Pid} -> Pid end.

%% What the processes of this node have come to: which still run, how many signals those that
%% are through have sent (receivers: the answers), and what was not as it should be.
-spec outcome() -> #{running := [pid()], signals := non_neg_integer(), wrong := [term()]}.
outcome() ->
    ?MODULE ! {outcome, self()},
    receive {outcome, Outcome} -> Outcome end.

%%% ------------------------------------------------------------------------------------
%%% Receivers

%% A receiver for so many senders.
-spec receiver({atom(), senders_first | receiver_first}, pos_integer()) -> receiver().
receiver({Name, Mode}, Senders) ->
    Self = self(),
    Pid = run(fun() ->
                      process_flag(trap_exit, true),
                      process_flag(message_queue_data, off_heap),
                      true = register(Name, self()),
                      Self ! {ready, self()},
                      receiving(#{mode => Mode, left => Senders, ready => [], sent => 0,
                                  senders => #{}})
              end),
    receive {ready, Pid} -> ok end,
    #{pid => Pid, name => Name, node => node(), mode => Mode}.

receiving(#{left := 0, mode := senders_first, sent := Sent}) ->
    quiet(),
    exit({fine, Sent});
receiving(#{left := 0, mode := receiver_first, ready := Ready, sent := Sent}) ->
    _ = [answer(S, pid, {last, 0}) || S <- Ready],
    %% Now and then a reason that goes in fragments.
    exit({over, self(), filler(Sent rem 4 div 3 * 100000), Sent});
receiving(State) ->
    receive M -> receiving(received(M, State))
    after ?PATIENCE_MS -> wrong(nothing_comes, maps:remove(ready, State))
    end.

received({hello, S, Name, Alias}, #{senders := Senders, mode := Mode} = State) ->
    Refs = case Mode of
               senders_first -> [{monitor(process, S), S},
                                 {monitor(process, {Name, node(S)}), {Name, node(S)}}];
               receiver_first -> []
           end,
    Mine = monitor(process, S, [{alias, explicit_unalias}]),
    Refs2 = case Mode of
                senders_first -> [{Mine, S} | Refs];
                receiver_first -> demonitor(Mine), Refs
            end,
    Sender = #{pid => S, name => Name, alias => Alias, next => 1, answers => 0, refs => Refs2,
               linked => unknown},
    S ! {welcome, self(), alias(), Mine},
    State#{senders := Senders#{S => Sender}};
received({o, S, Seq, What, Data}, State) ->
    numbered(S, Seq, What, Data, State);
received({'EXIT', S, {o, S, Seq, Data}}, State) ->
    numbered(S, Seq, plain, Data, State);
received({'EXIT', S, {over, S, _, _}}, #{senders := Senders} = State) ->
    #{S := #{linked := Linked} = Sender} = Senders,
    Linked =:= true orelse wrong(exit_without_link_or_too_early, Sender),
    gone(S, Sender#{linked := false}, State);
received({'DOWN', Ref, process, Who, {over, S, _, _}}, #{senders := Senders} = State) ->
    #{S := #{refs := Refs, linked := Linked} = Sender} = Senders,
    Linked =/= unknown orelse wrong({down_too_early, Who}, Sender),
    lists:member({Ref, Who}, Refs) orelse wrong({down_of_no_monitor, Who}, Sender),
    gone(S, Sender#{refs := Refs -- [{Ref, Who}]}, State);
received(Other, State) ->
    wrong({unexpected, Other}, maps:remove(ready, State)).

numbered(S, Seq, What, {Size, Filler, _}, #{senders := Senders} = State) ->
    #{S := #{next := Next} = Sender} = Senders,
    Seq =:= Next orelse
        wrong({not_in_order, #{expected => Next, came => Seq, what => What}}, Sender),
    filler(Size) =:= Filler orelse wrong({damaged, Seq}, Sender),
    done(What, S, State#{senders := Senders#{S := Sender#{next := Next + 1}}}).

done(plain, _S, State) ->
    State;
done({tell, How, {leader, Leader}}, S, State) ->
    Leader =:= group_leader() orelse
        wrong({group_leader, #{expected => Leader, is => group_leader()}}, State),
    answered(S, How, {led, 0}, State);
done({tell, How, What}, S, State) ->
    answered(S, How, {What, 0}, State);
done({ask, How, Size}, S, State) ->
    answered(S, How, {plain, Size}, State);
done({last, Linked}, S, #{senders := Senders, mode := senders_first} = State) ->
    #{S := Sender} = Senders,
    State#{senders := Senders#{S := Sender#{linked := Linked}}};
done(ready, S, #{senders := Senders, mode := receiver_first, left := Left} = State) ->
    #{S := #{answers := Answers} = Sender} = Senders,
    #{ready := Ready} = State,
    State#{left := Left - 1, ready := [Sender#{answers := Answers + 1} | Ready]}.

answered(S, How, What, #{senders := Senders, sent := Sent} = State) ->
    #{S := #{answers := Answers} = Sender} = Senders,
    Sender2 = answer(Sender#{answers := Answers + 1}, How, What),
    State#{senders := Senders#{S := Sender2}, sent := Sent + 1}.

answer(#{answers := Seq} = Sender, How, {What, Size}) ->
    _ = to(How, Sender, {r, self(), Seq, What, data(Size)}),
    Sender.

gone(S, #{refs := [], linked := false}, #{senders := Senders, left := Left} = State) ->
    State#{senders := maps:remove(S, Senders), left := Left - 1};
gone(S, Sender, #{senders := Senders} = State) ->
    State#{senders := Senders#{S := Sender}}.

%%% ------------------------------------------------------------------------------------
%%% Senders

%% A sender that takes so many steps. `leads' has it, and no other, change the receiver's
%% group leader.
-spec sender(receiver(), pos_integer(), #{seed := term(), leads := boolean()}) -> pid().
sender(Receiver, Steps, #{seed := Seed, leads := Leads}) ->
    run(fun() ->
                _ = rand:seed(exsss, Seed),
                process_flag(trap_exit, true),
                Name = list_to_atom("order_" ++ integer_to_list(erlang:unique_integer([positive]))),
                true = register(Name, self()),
                Alias = alias(),
                to(pid, Receiver, {hello, self(), Name, Alias}),
                State = receive
                            {welcome, _, Theirs, Monitor} ->
                                Receiver#{alias => Theirs, alias_of_monitor => Monitor}
                        after ?PATIENCE_MS -> wrong(no_welcome, Receiver)
                        end,
                sending(Steps, State#{me => {Name, Alias}, leads => Leads, seq => 1, expected => 1,
                                      asked => 0, linked => false, monitors => [],
                                      children => #{}, count => 0})
        end).

sending(0, State) ->
    ending(settle(State));
sending(Steps, #{count := Count} = State) ->
    State2 = step(rand:uniform(100), State),
    sending(Steps - 1, drain(State2#{count := Count + 1})).

step(Roll, State) when Roll =< 55 ->
    visible(plain, State);
step(Roll, #{asked := Asked} = State) when Roll =< 62 ->
    visible({ask, any([pid, name, alias]), size()}, State#{asked := Asked + 1});
step(Roll, #{pid := Pid, seq := Seq} = State) when Roll =< 70 ->
    Size = size(),
    exit(Pid, {o, self(), Seq, data(Size)}),
    State#{seq := Seq + 1};
step(Roll, #{pid := Pid, linked := false} = State) when Roll =< 76 ->
    link(Pid),
    State#{linked := true};
%% Not linked again before the receiver has confirmed it: else a VM of OTP 25 now and then loses the
%% link, over any carrier.
step(Roll, #{pid := Pid, linked := true} = State) when Roll =< 76 ->
    unlink(Pid),
    to_be_told(unlinked, State#{linked := unlinking});
step(Roll, #{monitors := Monitors} = State)
  when Roll =< 86, length(Monitors) < ?MOST_MONITORS ->
    Who = case rand:uniform(2) of
              1 -> maps:get(pid, State);
              2 -> {maps:get(name, State), maps:get(node, State)}
          end,
    State#{monitors := [{monitor(process, Who), Who} | Monitors]};
step(Roll, #{monitors := [_ | _] = Monitors} = State) when Roll =< 93 ->
    {Ref, Who} = any(Monitors),
    demonitor(Ref, any([[], [flush]])),
    State#{monitors := Monitors -- [{Ref, Who}]};
%% One at a time: a change takes effect before the messages in front of it are looked at.
step(Roll, #{leads := true, pid := Pid} = State) when Roll =< 95 ->
    Leader = any([self(), whereis(init), whereis(?MODULE)]),
    group_leader(Leader, Pid),
    to_be_told({leader, Leader}, State#{leads := asked});
step(Roll, #{children := Children} = State)
  when Roll > 95, map_size(Children) < ?MOST_CHILDREN ->
    start_child(State);
step(_, State) ->
    visible(plain, State).

to_be_told(What, #{asked := Asked} = State) ->
    visible({tell, any([pid, name, alias]), What}, State#{asked := Asked + 1}).

visible(What, State) -> visible(any([pid, pid, name, alias, alias_of_monitor]), What, State).

visible(How, What, #{seq := Seq} = State) ->
    Size = size(),
    to(How, State, {o, self(), Seq, What, data(Size)}),
    State#{seq := Seq + 1}.

%% Looks at what has come, in the order in which it came.
drain(State) ->
    receive M -> drain(handle(M, State)) after 0 -> State end.

%% All answers and all that children have to say.
settle(#{asked := Asked, expected := Expected, children := Children} = State)
  when Asked >= Expected; Children =/= #{} ->
    receive M -> settle(handle(M, State))
    after ?PATIENCE_MS -> wrong(answers_missing, State)
    end;
settle(State) -> State.

ending(#{mode := senders_first, linked := Linked, count := Count, monitors := Monitors} = State) ->
    _ = [demonitor(Ref) || {Ref, _} <- Monitors],
    _ = visible({last, Linked}, State),
    exit({over, self(), filler(Count rem 4 div 3 * 100000), Count});
ending(#{mode := receiver_first} = State) ->
    over(visible(ready, State)).

%% The receiver goes first: its last answer, then what its end means.
over(#{pid := Pid, expected := Expected} = State) ->
    receive
        {r, Pid, Expected, last, _} -> ends(State);
        M -> wrong({before_the_last_answer, summary(M)}, State)
    after ?PATIENCE_MS -> wrong(no_last_answer, State)
    end.

ends(#{linked := false, monitors := [], count := Count}) ->
    quiet(),
    exit({fine, Count});
ends(#{pid := Pid, monitors := Monitors} = State) ->
    receive
        {'EXIT', Pid, {over, Pid, _, _}} ->
            maps:get(linked, State) orelse wrong(exit_without_link, State),
            ends(State#{linked := false});
        {'DOWN', Ref, process, Who, {over, Pid, _, _}} ->
            lists:member({Ref, Who}, Monitors) orelse wrong({down_of_no_monitor, Who}, State),
            ends(State#{monitors := Monitors -- [{Ref, Who}]});
        M -> wrong({after_the_last_answer, summary(M)}, State)
    after ?PATIENCE_MS -> wrong(end_not_told, State)
    end.

handle({r, Pid, Seq, led, Data}, #{pid := Pid} = State) ->
    handle({r, Pid, Seq, plain, Data}, State#{leads := true});
handle({r, Pid, Seq, unlinked, Data}, #{pid := Pid} = State) ->
    handle({r, Pid, Seq, plain, Data}, State#{linked := false});
handle({r, Pid, Seq, plain, {Size, Filler, _}}, #{pid := Pid, expected := Expected} = State) ->
    Seq =:= Expected orelse wrong({answer, #{expected => Expected, came => Seq}}, State),
    filler(Size) =:= Filler orelse wrong({damaged_answer, Seq}, State),
    State#{expected := Expected + 1};
handle(Other, State) ->
    of_child(Other, State).

%%% ------------------------------------------------------------------------------------
%%% Children

%% Started by spawn_request/5 with a link, a monitor, both or neither.
start_child(#{children := Children, node := Node, me := {Name, Alias}} = State) ->
    Options = any([[], [link], [monitor], [link, monitor]]),
    Count = rand:uniform(6) - 1,
    Key = make_ref(),
    To = #{pid => self(), name => Name, node => node(), alias => Alias},
    Args = [To, Key, Count, rand:uniform(1 bsl 32)],
    Id = spawn_request(Node, ?MODULE, child, Args, [{reply_tag, {started, Key}} | Options]),
    State#{children := Children#{Key => #{id => Id, pid => unknown, next => 1, count => Count,
                                          ends => Options}}}.

%% @private
child(To, Key, Count, Seed) ->
    _ = rand:seed(exsss, Seed),
    _ = [begin
             Size = size(),
             to(any([pid, name, alias]), To, {c, Key, N, data(Size)})
         end || N <- lists:seq(1, Count)],
    exit({child_over, Key, filler(any([0, 0, 0, 100000]))}).

of_child({{started, Key}, Id, ok, Pid}, State) ->
    #{children := #{Key := Child}} = State,
    #{id := Id, pid := unknown, next := 1} = Child,
    child_is(Key, Child#{pid := Pid}, State);
of_child({c, Key, N, {Size, Filler, _}}, State) ->
    #{children := #{Key := #{pid := Pid, next := Next} = Child}} = State,
    is_pid(Pid) orelse wrong(message_before_spawn_reply, Child),
    N =:= Next orelse wrong({child, #{expected => Next, came => N}}, Child),
    filler(Size) =:= Filler orelse wrong({damaged_by_child, N}, Child),
    child_is(Key, Child#{next := Next + 1}, State);
of_child({'EXIT', Pid, {child_over, Key, _}}, State) ->
    child_ends(link, Key, Pid, State);
of_child({'DOWN', Id, process, Pid, {child_over, Key, _}}, State) ->
    #{children := #{Key := #{id := Id}}} = State,
    child_ends(monitor, Key, Pid, State);
of_child(Other, State) ->
    wrong({unexpected, summary(Other)}, State).

child_ends(How, Key, Pid, State) ->
    #{children := #{Key := #{pid := Known, ends := Ends, next := Next, count := Count} = Child}} =
        State,
    Known =:= Pid orelse wrong({end_before_spawn_reply, How}, Child),
    lists:member(How, Ends) orelse wrong({end_not_asked_for, How}, Child),
    Next > Count orelse wrong({end_before_last_message, How}, Child),
    child_is(Key, Child#{ends := Ends -- [How]}, State).

child_is(Key, #{pid := Pid, ends := [], next := Next, count := Count},
         #{children := Children} = State) when is_pid(Pid), Next > Count ->
    State#{children := maps:remove(Key, Children)};
child_is(Key, Child, #{children := Children} = State) ->
    State#{children := Children#{Key := Child}}.

%%% ------------------------------------------------------------------------------------
%%% Small things

to(pid, #{pid := Pid}, Message) -> Pid ! Message;
to(name, #{name := Name} = Whom, Message) -> {Name, node_of(Whom)} ! Message;
to(alias, #{alias := Alias}, Message) -> Alias ! Message;
to(alias_of_monitor, #{alias_of_monitor := Alias}, Message) -> Alias ! Message.

node_of(#{node := Node}) -> Node;
node_of(#{pid := Pid}) -> node(Pid).

%% Mostly small; a fortieth in chunks, as many in fragments of the VM.
size() ->
    case rand:uniform(40) of
        1 -> 65000 + rand:uniform(140000);
        2 -> 4000 + rand:uniform(40000);
        3 -> 60 + rand:uniform(8);
        _ -> rand:uniform(100)
    end.

%% Now and then with an atom that has fallen out of the VM's cache meanwhile, or was never there.
data(Size) ->
    Atom = case rand:uniform(20) of
               1 -> list_to_atom("order_atom_" ++ integer_to_list(rand:uniform(?ATOMS)));
               _ -> ok
           end,
    {Size, filler(Size), Atom}.

filler(Size) -> binary:copy(<<(Size band 255)>>, Size).

any(List) -> lists:nth(rand:uniform(length(List)), List).

quiet() ->
    receive M -> wrong({after_the_end, summary(M)}, #{}) after ?QUIET_MS -> ok end.

summary(Term) -> lists:flatten(io_lib:format("~0P", [Term, 60])).

-spec wrong(term(), term()) -> no_return().
wrong(What, State) ->
    exit({wrong, What, summary(State)}).
